"""What a key looks like, and what does not: one list for configs, command lines and error messages."""

from __future__ import annotations

import base64
import random
import string

import pytest

from infermesh.redaction import looks_secret, names_config_secret, names_secret, redact

LETTERS = string.ascii_letters
BASE62 = LETTERS + string.digits
BASE64URL = BASE62 + "-_"
HEX = "0123456789abcdef"

# Whose key, what it begins with, what it goes on with, how long that is.
KEYS = [
    ("OpenAI", "sk-", BASE62, 48),
    ("OpenAI project", "sk-proj-", BASE64URL, 156),
    ("OpenAI service account", "sk-svcacct-", BASE64URL, 120),
    ("Anthropic", "sk-ant-api03-", BASE64URL, 95),
    ("OpenRouter", "sk-or-v1-", HEX, 64),
    ("DeepSeek", "sk-", HEX, 32),
    ("Groq", "gsk_", BASE62, 52),
    ("xAI", "xai-", BASE62, 80),
    ("Google", "AIzaSy", BASE64URL, 33),
    ("Google, newer", "AQ.Ab8RN6", BASE64URL, 44),
    ("Google, OAuth", "ya29.", BASE64URL, 120),
    ("Hugging Face", "hf_", LETTERS, 34),
    ("AWS", "AKIA", string.ascii_uppercase + "234567", 16),
    ("AWS, for a while", "ASIA", string.ascii_uppercase + "234567", 16),
    ("Bedrock", "ABSK", BASE62, 120),
    ("NVIDIA", "nvapi-", BASE64URL, 64),
    ("Replicate", "r8_", BASE62, 37),
    ("Perplexity", "pplx-", BASE62, 48),
    ("Fireworks", "fw_", BASE62, 22),
    ("Cerebras", "csk-", string.ascii_lowercase + string.digits, 48),
    ("Together", "tgp_v1_", BASE64URL, 43),
    ("Databricks", "dapi", HEX, 32),
    ("GitHub", "ghp_", BASE62, 36),
    ("GitHub, fine-grained", "github_pat_", BASE62, 82),
    ("Jina", "jina_", BASE62, 60),
    ("a bearer token", "Bearer ", BASE64URL, 40),
    ("a JWT", "eyJhbGciOiJIUzI1NiJ9.eyJ", BASE64URL + ".", 80),
]


def drawn(random_: random.Random, prefix: str, alphabet: str, length: int) -> str:
    last = random_.choice(alphabet.strip("-_."))  # what ends in punctuation is cut in a sentence
    return prefix + "".join(random_.choice(alphabet) for _ in range(length - 1)) + last


@pytest.mark.parametrize(("prefix", "alphabet", "length"), [key[1:] for key in KEYS], ids=[key[0] for key in KEYS])
def test_every_providers_key_is_seen_and_taken_out(prefix: str, alphabet: str, length: int) -> None:
    if "eyJ" in prefix:
        prefix, alphabet = f"{prefix}zdWIiOiIxMjM0NTY3ODkwIn0.", BASE64URL
    for seed in range(300):
        key = drawn(random.Random(seed), prefix, alphabet, length)
        for text in (key, f"Use {key}, please.", f'{{"key": "{key}"}}', f"--key={key}", f"https://host/v1?x={key}"):
            assert looks_secret(text), text
            assert key.removeprefix("Bearer ")[-8:] not in redact(text), text


def test_the_shortest_keys_are_seen_but_for_a_few() -> None:
    """LiteLLM's proxy draws 22 characters, which may happen to read like words."""
    keys = [drawn(random.Random(seed), "sk-", BASE64URL, 22) for seed in range(2000)]
    assert sum(not looks_secret(key) for key in keys) < 20
    assert not [key for key in keys if key[-8:] in redact(f"Invalid key {key}.")]


@pytest.mark.parametrize(
    "text",
    [
        "sk-1234567890abcdefghijkl",
        "sk-lf-0f3e2d1c-5b6a-4789-8a9b-0c1d2e3f4a5b",
        "AIzaSyFAKEFAKEFAKEFAKEFAKE",
        "gsk_FAKEFAKEFAKEFAKEFAKE",
        "http://user:s3cretpw@host:8000/v1",
        "postgresql://me:pa:ss@db/x",
        "https://host/v1?api-key=0123456789",
        "https://host/v1?api-version=2024-10-21&key=abc",
    ],
)
def test_other_secrets_are_seen(text: str) -> None:
    assert looks_secret(text)


def innocents() -> list[str]:
    """Values as they stand in configs, each of which has something of a key."""
    random_ = random.Random(7)
    image = base64.b64encode(random_.randbytes(200_000)).decode()
    noise = "".join(random_.choice(BASE64URL) for _ in range(40))
    return [
        # models
        *("hosted_vllm/meta-llama/Meta-Llama-3-8B-Instruct", "openai/gpt-4.1-mini-2025-04-14", "xai/grok-4-fast"),
        *("perplexity/pplx-70b-online", "pplx-embed-v1-0.6b", "hf-internal-testing/tiny-random-LlamaForCausalLM"),
        *("huggingface/sk-SK-conversational-speech-2024", "ft:gpt-4o-mini:acme:tickets:AbCdEf12", "xai-org/grok-1"),
        *("bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0", "fw_llama_v3_70b_instruct", "hf_transfer"),
        *("accounts/fireworks/models/llama-v3p1-405b-instruct", "fw_llama_v3p1_8x7b_fp8_bf16", "sk-learn-pipelines-v2"),
        # ids, hashes
        *("org-AbCdEf0123456789abcdef", "asst_0123456789abcdefABCDEF", "arn:aws:bedrock:us-east-1:123456789012:x"),
        *("93194e5f0c7a4d1e8b2a6c3d5e7f9a0b1c2d3e4f", "550e8400-e29b-41d4-a716-446655440000", noise),
        *("deadbeef" * 8, "AKIA", "2026-11-25_01-20-46", "resp_" + "0a" * 25),
        # paths and URLs
        *("data/sk-learn/task-management/rows.jsonl", "/scratch/hf_datasets/pk-tables/part-0001.parquet"),
        *("https://host:8443/v1?api-version=2024-10-21", "http://host:8000/v1?x=a@b", "s3://bucket/key=1/part.parquet"),
        *("http://[::1]:8000/v1", "outputs/quickstart/2026-11-23_09-14-02", "https://user@host/v1", "mailto:a@b.org"),
        # prompts and templates
        "Write to sk-support about task-management and the Bearer of bad news.",
        "The bearer authentication-mechanisms of RFC 6750, explained for risk-averse readers; token: {{ token }}",
        "Answer with a key, a secret or a password? password=hunter2 is no key of ours. {{ api_key_column }}",
        "{% for row in rows %}{{ row['key'] }}: {{ row.value }}{% endfor %}",
        "select key, token from read_parquet('https://host/rows.parquet') where api_key is not null",
        f"data:image/png;base64,{image}",
        f'[{{"type": "image_url", "image_url": {{"url": "data:image/jpeg;base64,{image[:5000]}"}}}}]',
        # other texts of configs
        *(
            "pipelines.quickstart.schema:Summary",
            "OPENAI_API_KEY",
            "least-busy",
            "256MB",
            "UTC+02:00",
            "{{ messages }}",
        ),
    ]


@pytest.mark.parametrize("text", innocents(), ids=lambda text: text[:40])
def test_what_only_looks_like_one_is_left_alone(text: str) -> None:
    assert not looks_secret(text)


def test_random_ids_and_hashes_are_no_keys() -> None:
    random_ = random.Random(11)
    for _ in range(2000):
        length = random_.randint(8, 80)
        text = "".join(random_.choice(random_.choice((BASE62, HEX))) for _ in range(length))
        if not text.startswith(("AIza", "AKIA", "ASIA", "ABSK", "dapi")):
            assert not looks_secret(text), text


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "proxy-authorization", "X-Authorization", "cookie", "Set-Cookie", "x-api-key", "api-key"),
        *("apikey", "x-goog-api-key", "Ocp-Apim-Subscription-Key", "X-Auth-Token", "x-amz-security-token", "X-Key"),
        *("Helicone-Auth", "cf-aig-authorization", "CF-Access-Client-Secret", "Private-Token", "x-portkey-api-key"),
        *("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"),
    ],
)
def test_names_of_headers_and_variables_that_hold_a_secret(name: str) -> None:
    assert names_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("Content-Type", "X-Title", "HTTP-Referer", "OpenAI-Organization", "OpenAI-Project", "x-request-source"),
        *("X-Session-Id", "Keep-Alive", "keyboard", "TOKENIZERS_PARALLELISM", "CF-Access-Client-Id", "accept"),
    ],
)
def test_names_that_hold_none(name: str) -> None:
    assert not names_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "API_KEY", "apiKey", "authorization", "x-api-key", "x-goog-api-key", "token", "password"),
        *("aws_secret_access_key", "azure_ad_token", "client_secret", "access_token", "auth_token", "cookie"),
    ],
)
def test_keys_of_a_config_that_hold_a_secret(name: str) -> None:
    assert names_config_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("api_key_env", "prompt_cache_key", "eos_token", "stop_token", "max_tokens", "default_output_tokens", "key"),
        *("partition_key", "row_key", "tokens_per_second", "max_token_burst", "idempotency_key"),
    ],
)
def test_keys_of_a_config_that_hold_none(name: str) -> None:
    """They cannot be taken from a variable, so that a false alarm would leave no way out."""
    assert not names_config_secret(name)
