"""Second stage of the demo base: tokenizers and the two text encoders, trained to read captions.

SDXL's encoders were trained on pairs of images and texts before SDXL was. These are trained to predict the attributes
that a caption names, which takes minutes: from every position at or after the end of the text, and from the pooled
projection, a linear classifier finds what is where in the image. Then they are frozen, as SDXL's are.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rapm_cli.bases.demo.captions import KNOWN_WORDS, phrases
from rapm_cli.bases.demo.recipe.common import cosine_with_warmup
from rapm_cli.bases.demo.world import ATTRIBUTES, RELATIONS, labels, random_scenes

MAX_TOKENS = 32  # SDXL's 77 would make training of the demo base a third slower
OMIT = 0.1  # probability that a caption leaves out a size or the background
WIDTHS = (96, 128)  # different, so that no loader can confuse the encoders


def build_tokenizer(pad_token: str) -> CLIPTokenizer:
    """Create a CLIP tokenizer in which every known word is one token, and any text can be encoded."""
    letters = list(_byte_letters())
    vocabulary = ["!"] + [letter for letter in letters if letter != "!"]
    vocabulary += [letter + "</w>" for letter in vocabulary]
    merges: list[str] = []
    for word in sorted(KNOWN_WORDS):
        end = word[-1] + "</w>"
        for letter in reversed(word[:-1]):  # every merge ends a word, so that no merge splits another word
            if letter + end not in vocabulary:
                vocabulary.append(letter + end)
                merges.append(f"{letter} {end}")
            end = letter + end
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=[tuple(merge.split(" ")) for merge in merges],
        pad_token=pad_token,
        model_max_length=MAX_TOKENS,
    )


def _byte_letters() -> list[str]:
    """Return the 256 printable characters that stand for bytes in byte-level BPE, printable bytes first."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def _config(tokenizer: CLIPTokenizer, width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=4,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_TOKENS,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",  # without it, from_pretrained loads float16 encoders beside a float32 UNet
    )


class _Heads(nn.Module):
    """Linear classifiers, used only in training.

    Each attribute is predicted twice: by place in the image, which the UNet needs, and by order of mention, which is
    learned first and helps to learn the other.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [len(classes) for classes in ATTRIBUTES.values()]
        self.by_place = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.by_mention = nn.ModuleList(nn.Linear(width, size) for size in [*sizes[:6], len(RELATIONS)])

    def loss(self, features: Tensor, by_place: Tensor, by_mention: Tensor) -> Tensor:
        """Return the mean cross-entropy over the captions' attributes; -1 marks an attribute left out."""
        pairs = [*zip(self.by_place, by_place.T, strict=True), *zip(self.by_mention, by_mention.T, strict=True)]
        parts = [functional.cross_entropy(head(features), target, ignore_index=-1) for head, target in pairs]
        return torch.stack(parts).mean()

    def accuracy(self, features: Tensor, by_place: Tensor) -> float:
        """Return the accuracy over attributes, by place."""
        guesses = torch.stack([head(features).argmax(1) for head in self.by_place], dim=1)
        return float((guesses == by_place)[by_place >= 0].float().mean())


def train_text(
    steps: int, seed: int, report: Callable[[str], None]
) -> tuple[CLIPTokenizer, CLIPTokenizer, CLIPTextModel, CLIPTextModelWithProjection]:
    """Train both encoders.

    Args:
        steps: Optimizer steps on batches of 128 captions.
        seed: Seed of weights and captions.
        report: Function that gets lines of progress, with the accuracy on held-out scenes.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tokenizers = build_tokenizer("<|endoftext|>"), build_tokenizer("!")
    first = CLIPTextModel(_config(tokenizers[0], WIDTHS[0], "quick_gelu"))
    second = CLIPTextModelWithProjection(_config(tokenizers[1], WIDTHS[1], "gelu"))
    heads = [_Heads(WIDTHS[0]), _Heads(WIDTHS[1]), _Heads(WIDTHS[1])]
    parameters = [*first.parameters(), *second.parameters(), *(p for head in heads for p in head.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2)
    schedule = cosine_with_warmup(optimizer, 50, steps)

    def features(captions: list[str], place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return both encoders' states at one position at or after the end of the text, and the pooled projection."""
        states = []
        pooled = torch.empty(0)
        for tokenizer, encoder in zip(tokenizers, (first, second), strict=True):
            tokens = tokenizer(
                captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
            ).input_ids
            end = (tokens == tokenizer.eos_token_id).int().argmax(1)  # position of the first end token
            position = end + (place * (MAX_TOKENS - end)).long()
            out = encoder(tokens, output_hidden_states=True)
            states.append(out.hidden_states[-2][torch.arange(len(captions)), position])
            pooled = out.text_embeds if encoder is second else pooled
        return states[0], states[1], pooled

    for step in range(steps):
        captions, *target = _captions(128, generator, held_out=False)
        views = features(captions, torch.rand(128, generator=generator))
        loss = torch.stack([head.loss(view, *target) for head, view in zip(heads, views, strict=True)]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            with torch.no_grad():
                captions, by_place, _ = _captions(256, generator, held_out=True)
                views = features(captions, torch.rand(256, generator=generator))
                right = [head.accuracy(view, by_place) for head, view in zip(heads, views, strict=True)]
            report(f"text {step}: loss {loss.item():.4f}, held-out accuracy {min(right):.4f}")
    return *tokenizers, first.eval(), second.eval()


def _captions(count: int, generator: torch.Generator, *, held_out: bool) -> tuple[list[str], Tensor, Tensor]:
    """Generate captions with their attributes, by place (count, 8) and by order of mention (count, 7)."""
    scenes = random_scenes(count, generator, held_out=held_out)
    by_place, captions = labels(scenes), []
    for row, (text, unsaid) in enumerate(phrases(scenes, generator, omit=OMIT)):
        captions.append(text)
        for name in unsaid:
            by_place[row, list(ATTRIBUTES).index(name)] = -1
    is_swapped = torch.tensor([scene.canonical() != scene for scene in scenes]).unsqueeze(1)
    mentions = torch.where(is_swapped, by_place[:, [3, 4, 5, 0, 1, 2]], by_place[:, :6])
    relation = torch.tensor([RELATIONS.index(scene.relation) if scene.relation else -1 for scene in scenes])
    return captions, by_place, torch.cat([mentions, relation.unsqueeze(1)], dim=1)
