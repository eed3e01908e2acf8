"""Import torchvision from the index beside a torch without CUDA, for which it is not built."""

import torch

try:
    import torchvision
except RuntimeError:  # its operators did not load, and none of the programs uses them
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
