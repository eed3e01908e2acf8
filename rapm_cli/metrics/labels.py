"""Prompt accuracy: the share of attributes, and of whole images, that show what the prompt asks for."""

from rapm_cli.metrics.metric import OTHER_PROMPT, Bootstrap, LabelledSamples, add_labelled_metric


def _attributes(samples: LabelledSamples) -> float:
    return float(samples.right[samples.asked].float().mean())


def _images(samples: LabelledSamples) -> float:
    return float((samples.right | ~samples.asked).all(dim=1).float().mean())


BLIND_TO = "softness, noise and artefacts, as long as the reader still knows the objects"
add_labelled_metric(
    "attributes", "attributes right", True, Bootstrap(_attributes, lowest=0, highest=1), unit="%",
    sees=(OTHER_PROMPT,), blind_to=BLIND_TO,
)  # fmt: skip
add_labelled_metric(
    "pictures", "images all right", True, Bootstrap(_images, lowest=0, highest=1), unit="%",
    sees=(OTHER_PROMPT,), blind_to=BLIND_TO,
)  # fmt: skip
