"""The settings of access: what may be combined, and that no secret is shown."""

from pathlib import Path

import pytest

from api.access.settings import AccessSettings, Mode
from api.settings import ApiSettings

SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105 - for tests
JWT = {"SITELINK_ACCESS": "jwt", "SITELINK_JWT_SECRET": SECRET}


def test_without_access_only_this_machine_is_served() -> None:
    """As long as nobody has chosen."""
    assert ApiSettings.from_env({}).access == AccessSettings(Mode.LOOPBACK)
    with pytest.raises(ValueError, match=r"SITELINK_HOST is '10.0.0.1'.*SITELINK_ACCESS=jwt"):
        ApiSettings.from_env({"SITELINK_HOST": "10.0.0.1"})
    with pytest.raises(ValueError, match="SITELINK_PUBLIC_HOSTS"):
        ApiSettings.from_env({"SITELINK_PUBLIC_HOSTS": "plans.example.com"})


def test_secret_that_nobody_would_ask_for_is_refused(tmp_path: Path) -> None:
    """Who sets a secret wants access control: behind a proxy on this machine, a server without it would let everybody in."""
    file = tmp_path / "jwt"
    file.write_text(SECRET)
    for name, value in (("SITELINK_JWT_SECRET", SECRET), ("SITELINK_JWT_SECRET_FILE", str(file)), ("SITELINK_TICKET_SECRET", SECRET)):
        with pytest.raises(ValueError, match="SITELINK_ACCESS is not") as refused:
            ApiSettings.from_env({name: value})
        assert SECRET not in str(refused.value)
        assert ApiSettings.from_env({name: value, "SITELINK_ACCESS": "open"}).access.mode is Mode.OPEN


@pytest.mark.parametrize("access", [JWT, {"SITELINK_ACCESS": "open"}])
def test_with_access_other_machines_are_served(access: dict[str, str]) -> None:
    """An address that stands for all needs the names by which it is reached."""
    assert ApiSettings.from_env({**access, "SITELINK_HOST": "10.0.0.1"}).host == "10.0.0.1"
    with pytest.raises(ValueError, match="SITELINK_PUBLIC_HOSTS"):
        ApiSettings.from_env({**access, "SITELINK_HOST": "0.0.0.0"})  # noqa: S104 - not bound
    settings = ApiSettings.from_env(
        {**access, "SITELINK_HOST": "0.0.0.0", "SITELINK_PUBLIC_HOSTS": "Plans.example.com, 10.0.0.1,::1"}  # noqa: S104 - not bound
    )
    assert settings.access.public_hosts == ("plans.example.com", "10.0.0.1", "::1")


def test_secrets_rotate_and_come_from_files(tmp_path: Path) -> None:
    """The secret of tokens also signs tickets, unless there is another one."""
    file = tmp_path / "jwt"
    file.write_text(f"{SECRET},{SECRET[::-1]}\n")
    settings = AccessSettings.from_env({"SITELINK_ACCESS": "jwt", "SITELINK_JWT_SECRET_FILE": str(file)})
    assert settings.secrets == settings.ticket_secrets == (SECRET, SECRET[::-1])
    assert AccessSettings.from_env({**JWT, "SITELINK_TICKET_SECRET": SECRET * 2}).ticket_secrets == (SECRET * 2,)
    assert SECRET not in repr(settings)
    with pytest.raises(ValueError, match="both set"):
        AccessSettings.from_env({**JWT, "SITELINK_JWT_SECRET_FILE": str(file)})
    with pytest.raises(ValueError, match=r"SITELINK_JWT_SECRET_FILE is .*No such file"):
        AccessSettings.from_env({"SITELINK_JWT_SECRET_FILE": str(tmp_path / "absent")})


def test_public_keys_need_their_issuer_and_a_secret_for_tickets(tmp_path: Path) -> None:
    """An identity provider also signs for others."""
    file = tmp_path / "jwks.json"
    file.write_text("{}")
    provider = {"SITELINK_ACCESS": "jwt", "SITELINK_JWT_JWKS": str(file)}
    with pytest.raises(ValueError, match="SITELINK_JWT_ISSUER"):
        AccessSettings.from_env(provider)
    provider |= {"SITELINK_JWT_ISSUER": "https://login.example.com/", "SITELINK_JWT_AUDIENCE": "plans"}
    with pytest.raises(ValueError, match="SITELINK_TICKET_SECRET"):
        AccessSettings.from_env(provider)
    settings = AccessSettings.from_env({**provider, "SITELINK_TICKET_SECRET": SECRET})
    assert (settings.secrets, settings.public_keys) == ((), str(file))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SITELINK_ACCESS", "none"),
        ("SITELINK_JWT_SECRET", "short"),
        ("SITELINK_JWT_SECRET", f"{SECRET},short"),
        ("SITELINK_TICKET_SECRET", "short"),
        ("SITELINK_JWT_JWKS", "http://login.example.com/jwks.json"),
        ("SITELINK_JWT_JWKS", "ftp://login.example.com/jwks.json"),
        ("SITELINK_JWT_JWKS", "https://user:password@login.example.com/jwks.json"),
        ("SITELINK_JWT_JWKS", "/absent/jwks.json"),
        ("SITELINK_PUBLIC_HOSTS", "https://plans.example.com"),
        ("SITELINK_PUBLIC_HOSTS", "plans.example.com:443"),
        ("SITELINK_PUBLIC_HOSTS", "*"),
        ("SITELINK_CORS_ORIGINS", "*"),
        ("SITELINK_CORS_ORIGINS", "null"),
        ("SITELINK_CORS_ORIGINS", "app.example.com"),
        ("SITELINK_CORS_ORIGINS", "https://app.example.com/"),
        ("SITELINK_CORS_ORIGINS", "https://*.example.com"),
        ("SITELINK_CORS_ORIGINS", "https://["),
        ("SITELINK_CORS_ORIGINS", "https://app.example.com:port"),
    ],
)
def test_unusable_setting_is_refused_by_name(name: str, value: str) -> None:
    """The message names the variable, and shows no secret."""
    with pytest.raises(ValueError, match=name) as failure:
        AccessSettings.from_env({**JWT, "SITELINK_JWT_ISSUER": "i", "SITELINK_JWT_AUDIENCE": "a", name: value})
    assert SECRET not in str(failure.value)
    assert "password" not in str(failure.value)
