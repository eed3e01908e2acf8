import re

import pytest

from rapm_cli.bases.photographic import BLOCK, DRAWS, REGISTERS, groups, photographic_prompts
from rapm_cli.bases.scenery import FINISHES, KINDS, MEDIA, MOODS

ROWS = [(kind, scene) for kind in KINDS for scene in kind.scenes]
LISTS = [MEDIA, FINISHES, MOODS, *(words for kind, scene in ROWS for words in (kind.lights, kind.views, *scene))]
GOLDEN = [
    "a sandy bay with a wooden pier seen from the sea, backlit by a low sun",
    "a wide shot of an ibex standing on a rocky ledge",
    "a linocut of an iguana resting high in a rainforest tree, quiet atmosphere",
]  # places 0, 1,000 and 10,000 of seed 0
SOUNDS_OTHERWISE = ("unicorn", "ukiyo-e")  # a vowel that is spoken as a consonant


@pytest.fixture(scope="module")
def many():
    return photographic_prompts(20_000, 0)


def longest(words: str) -> int:
    """Words and commas of the longest group."""
    return max(len(re.findall(r"\w+|[^\w\s]", group)) for group in groups(words))


def test_they_are_a_function_of_seed_and_place():
    assert photographic_prompts(3000, 1)[:1100] == photographic_prompts(1100, 1)
    assert photographic_prompts(100, 1) != photographic_prompts(100, 2)
    assert [len(photographic_prompts(count, 0)) for count in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, BLOCK, BLOCK + 1]


@pytest.mark.parametrize("seed", [0, -1, 2**63])
def test_the_first_thousand_differ(seed):
    assert len(set(photographic_prompts(1000, seed))) == 1000


def test_there_are_more_than_a_hundred_thousand():
    assert len(set(photographic_prompts(150_000, 0))) > 100_000


def test_the_prompts_of_a_seed_stay(many):
    """What is distilled depends on them; a change of words is a change of numbers."""
    assert [many[k] for k in (0, 1000, 10_000)] == GOLDEN


def test_every_article_fits_the_sound_that_follows(many):
    for prompt in many:
        for article, word in re.findall(r"\b(an?) ([\w-]+)", prompt, re.IGNORECASE):
            has_vowel = word[0].lower() in "aeiou" and not word.startswith(SOUNDS_OTHERWISE)
            assert (article.lower() == "an") == has_vowel, prompt


def test_they_are_clean_text(many):
    for prompt in many:
        assert re.fullmatch(r"[A-Za-z0-9',. -]+", prompt), prompt
        assert not re.search(r"  | [,.]|,,|\bof,|^ | $", prompt), prompt
        assert not re.search(r"\b(\w+) \1\b", prompt), prompt


def test_registers_and_lengths_vary(many):
    words = [len(prompt.split()) for prompt in many]
    assert min(words) <= 4
    assert max(words) >= 25
    captions = sum(prompt.endswith(".") for prompt in many) / len(many)
    assert captions == pytest.approx(sum(form.endswith(".") for form in REGISTERS) / len(REGISTERS), abs=0.02)
    assert max(map(many.count, many[:300])) < 30


def test_no_list_says_a_thing_twice_and_every_scene_has_its_draws():
    for words in LISTS:
        named = [group for group in groups(words) if group]
        assert len(set(named)) == len(named), words
    for _, scene in ROWS:
        assert groups(scene[0])[0]
        assert len(scene) <= DRAWS - 7


def test_time_and_weather_are_the_lights_alone_and_colour_the_finishes():
    for kind, scene in ROWS:
        for words in (*scene, kind.views):
            assert not re.search(r"\b(night|dawn|dusk|noon|sunset|sunrise|rain|fog|sunny|moonlit|evening)\b", words)
        assert not re.search(r"black and white|colour|sepia", kind.views + kind.lights)


def test_the_longest_stays_below_sixty_tokens():
    """By the vocabulary of CLIP the longest that can be made has 47 tokens with both ends, of 42 words and commas."""
    dress = longest(FINISHES) + longest(MOODS) + len(["of", ",", ",", ","])
    plain = [sum(map(longest, scene)) + longest(kind.lights) + longest(kind.views) for kind, scene in ROWS]
    assert max(plain) + dress <= 45
