"""No text that is logged or shown holds a credential."""

from __future__ import annotations

from embedserve.remote.errors import is_secret, without_secrets


def test_credentials_in_urls_and_among_the_options_are_not_shown() -> None:
    options = {
        "key": "AKIA1234",
        "secret": "hush-hush",
        "endpoint_url": "http://store:9000",
        "client_kwargs": {"headers": {"Authorization": "Bearer abcdef"}, "region_name": "here"},
        "credentials": {"anything": "in-here"},
        "token": "ab",
    }
    text = "AKIA1234 hush-hush at http://u:p@store:9000 said Bearer abcdef in-here, here, abba"
    assert without_secrets(text, options) == "*** *** at http://***@store:9000 said *** ***, here, abba"


def test_a_long_answer_is_shortened() -> None:
    assert len(without_secrets("x" * 100_000, {})) < 2000


def test_names_of_options_that_may_hold_a_credential() -> None:
    assert all(map(is_secret, ["key", "secret_key", "aws_session_token", "password", "sas_token", "connection_auth"]))
    assert not any(map(is_secret, ["endpoint_url", "region_name", "anon", "project", "use_ssl"]))
