"""Statistics of real pictures to a file, for evaluations to come."""

from pathlib import Path

import torch

from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.evaluate.protocols import PROTOCOLS, Protocol
from rapm_cli.evaluate.reference import statistics_of
from rapm_cli.evaluate.request import Options, reference_of
from rapm_cli.extractors import EXTRACTORS, Opening
from rapm_cli.extractors.statistics import Statistics, write_statistics
from rapm_cli.metrics.pictures import PICTURE_METRICS
from rapm_cli.runs.versions import versions


def save_reference(asked: Options, path: Path, device: torch.device, reporter: Reporter) -> Statistics:
    """Look at the reference through one network, and write what it sees; features too where a metric wants them.

    Args:
        asked: Reference, protocol, and the metrics that tell which network; FID and KID where none are named.
        path: Whose name ends in `.safetensors`.
        device: Where to compute.
        reporter: Sees the bar.

    Raises:
        ConfigError: There is no reference of pictures, or the metrics look through several networks.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"--save-reference {path} has another ending", "let it end in .safetensors")
    protocol = PROTOCOLS[asked.protocol] if asked.protocol else Protocol()
    reference = reference_of(protocol, asked.reference, asked.samples or protocol.samples)
    if reference is None or reference.statistics:
        raise ConfigError("--save-reference needs pictures", "give --reference DIR, or coco:DIR")
    metrics = [PICTURE_METRICS[name] for name in asked.metrics or ("fid", "kid")]
    names = {metric.extractor for metric in metrics}
    name = names.pop()
    if names or name is None:
        raise ConfigError("--save-reference is for one network", "give --metrics fid,kid, or fd-dinov2, or cmmd")
    extractor = EXTRACTORS[name](Opening(device, reporter, asked.inception, asked.clip_model))
    keep = any(metric.wants_features for metric in metrics)
    made = statistics_of(reference, protocol.preparation, extractor, reporter, keep=keep)
    write_statistics(path, made, versions())
    return made
