"""What is said of memory, with stand-ins for devices that are not here."""

import psutil
import pytest
import torch

from rapm_cli.bases.memory import GIB, MemoryReading, read_memory
from tests.messages import names


@pytest.fixture
def card(monkeypatch):
    """A GPU of 80 GiB: 10 allocated of 12 reserved, 20 at most; 60 free. To wait for it is an error."""
    numbers = {"memory_allocated": 10, "max_memory_allocated": 20, "memory_reserved": 12}
    for name, gib in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, gib=gib: gib * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: pytest.fail("it waits for the device"))
    return torch.device("cuda", 0)


def test_a_gpus_memory_that_no_part_of_this_process_took_is_others(card):
    reading = read_memory(card)
    assert (reading.allocated, reading.peak, reading.free, reading.total) == (10 * GIB, 20 * GIB, 60 * GIB, 80 * GIB)
    assert reading.others == 80 * GIB - 60 * GIB - 12 * GIB - GIB // 2
    assert names(reading.words(), "GPU", "10.0 GiB", "20.0", "60.0", 80, "7.50")
    assert names(reading.words(is_short=True), "10.0 GiB", "60.0")


@pytest.mark.parametrize(("free_gib", "is_told"), [(67.6, False), (67.4, False), (66.9, True)])
def test_others_are_told_only_where_they_are_no_error_of_the_estimate(card, monkeypatch, free_gib, is_told):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free_gib * GIB), 80 * GIB))
    assert ("others" in read_memory(card).words()) == is_told
    assert read_memory(card).others >= 0


def test_apples_gpu_has_no_peak_and_never_more_free_than_the_machine(monkeypatch):
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * GIB)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**50)
    reading = read_memory(torch.device("mps"))
    assert reading.free <= psutil.virtual_memory().total
    assert names(reading.words(), "GPU", "3.00 GiB")
    assert "peak" not in reading.words()


def test_a_cpus_memory_is_this_processs_and_the_machines():
    reading = read_memory(torch.device("cpu"))
    assert reading.peak is not None
    assert 0 < reading.allocated <= reading.peak < reading.total == psutil.virtual_memory().total
    assert reading.free < reading.total
    assert reading.words().startswith("RAM ")


def test_words_are_as_short_as_the_bars_suppose():
    largest = MemoryReading("GPU", *[int(99.94 * GIB)] * 4, others=int(9.994 * GIB))
    assert len(largest.words()) <= 54
    assert len(largest.words(is_short=True)) <= 20
