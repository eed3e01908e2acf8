"""A GPU's name, precision and waiting, as torch is asked for them."""

import pytest
import torch

from rapm_cli.bases import stopwatch
from rapm_cli.bases.device import find_device, find_precision
from rapm_cli.core.common.errors import ConfigError, is_out_of_memory, require_shortage
from tests.messages import naming


@pytest.fixture
def cards(monkeypatch):
    """An RTX 3090 and, second, a GTX 1080 Ti."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(8, 6), (6, 1)][device.index])


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_gpu_has_its_number_which_some_functions_of_torch_insist_on(cards, name, index):
    assert find_device(name) == torch.device("cuda", index)


def test_a_gpu_that_is_not_there_is_refused(cards):
    with pytest.raises(ConfigError, match=naming("cuda:2")):
        find_device("cuda:2")


def test_precision_is_that_of_the_named_gpu(cards):
    assert [find_precision("auto", find_device(f"cuda:{k}")) for k in (0, 1)] == ["bf16", "fp16"]


def test_the_clock_waits_for_the_device_that_works(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    stopwatch.wait(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_that_runs_out_beside_torchs_own_is_known_by_its_words(words):
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_a_shortage_loses_its_frames_and_another_error_goes_on():
    def caught(words):
        try:
            raise RuntimeError(words)
        except RuntimeError as error:
            return require_shortage(error)

    assert caught("cuDNN error: CUDNN_STATUS_ALLOC_FAILED").__traceback__ is None
    with pytest.raises(RuntimeError, match="device-side assert"):
        caught("CUDA error: device-side assert triggered")
