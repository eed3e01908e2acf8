import json
import time

import pytest

from rapm_cli.cli.console import Output
from rapm_cli.cli.secrets import redact


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("token hf_abcdefghijABCDEFGHIJ0123 was", "token hf_*** was"),
        ("Authorization: Bearer abcdefghijklmnop0123", "Authorization: Bearer ***"),
        ('{"api_key": "abcdefghijklmnop0123"}', '{"api_key": "***"}'),
        ("https://me:pass-word@host/x", "https://***@host/x"),
        ("Authorization: Basic QWxhZGRpbjpvcGVu", "Authorization: Basic ***"),
        ("?access_token=abcdef0123&x=1", "?access_token=***&x=1"),
        ("WANDB_API_KEY=abcdefgh", "WANDB_API_KEY=***"),
        ("client_secret=abcdefgh", "client_secret=***"),
        ("https://ghp_abcdefgh@github.com/x", "https://***@github.com/x"),
        ("X-Amz-Signature=0123456789abcdef", "X-Amz-Signature=***"),
        ("password=hunter2", "password=***"),
        ("hidden by the environment: not-a-pattern!", "hidden by the environment: ***"),
        ("a token of love, a secret garden", "a token of love, a secret garden"),
        ("a photo of a secret underground-laboratory", "a photo of a secret underground-laboratory"),
        ("top secret: laboratories, basic understanding", "top secret: laboratories, basic understanding"),
    ],
)
def test_secrets_are_cut_out_and_words_are_not(text, safe, monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "not-a-pattern!")
    assert redact(text) == safe


def test_a_result_stays_json_whatever_is_cut_out_of_it(monkeypatch, capsys):
    secret = 'pa"ss\\word-é123'
    monkeypatch.setenv("HF_TOKEN", secret)
    record = {"prompt": 'a sign that says token=abcdefg"hi"', "recipe": {"api_key": "abc", "made by": [secret]}}
    Output(as_json=True).result(record)
    said = json.loads(capsys.readouterr().out)
    assert said == {"prompt": 'a sign that says token=***"hi"', "recipe": {"api_key": "***", "made by": ["***"]}}


@pytest.mark.parametrize("text", ["a" * 200_000, "token:" * 30_000, "a://" * 50_000])
def test_a_long_text_of_a_stranger_takes_no_minutes(text):
    begun = time.perf_counter()
    redact(text)
    assert time.perf_counter() - begun < 20  # a pattern that tries every pair of characters takes minutes
