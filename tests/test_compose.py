"""docker-compose.yml and the Dockerfile, as far as they can be tested without a container engine."""

import json
import re
import shlex
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from shared.settings import ROOT, names

SERVICES = {"postgres", "redis", "api", "worker", "producer", "flower"}
PROCESSES = {"web": "api", "worker": "worker", "producer": "producer", "flower": "flower"}  # Procfile → Compose
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)(:[?-][^}]*)?\}")
TEXT = (ROOT / "docker-compose.yml").read_text()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXT)
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


def test_the_file_follows_the_specification(compose: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "scripts/compose_schema/compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(compose)] == []
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"services": {"api": {"imagee": "x"}}})


def test_every_reference_is_defined(compose: dict[str, Any], services: dict[str, Any]) -> None:
    """The schema does not check named volumes and the services in `depends_on`."""
    assert set(services) == SERVICES
    used = {v.split(":")[0] for s in services.values() for v in s.get("volumes", []) if isinstance(v, str)}
    assert used == set(compose["volumes"])
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy"
            assert "healthcheck" in services[name]


def test_commands_equal_those_of_the_procfile(services: dict[str, Any]) -> None:
    lines = dict(line.split(":", 1) for line in (ROOT / "Procfile").read_text().splitlines() if line.strip())
    assert set(lines) == set(PROCESSES)
    for process, service in PROCESSES.items():
        assert services[service]["command"] == shlex.split(lines[process]), service


def test_only_the_api_is_published_and_on_loopback(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "ports" in service} == {"api"}
    assert services["api"]["ports"] == ["127.0.0.1:${ASKFOLDER_PORT:-8000}:8000"]
    assert all("network_mode" not in service for service in services.values())
    assert services["api"]["environment"]["ASKFOLDER_PORT"] == "8000"


def test_flower_does_not_start_without_a_password(services: dict[str, Any]) -> None:
    auth = services["flower"]["environment"]["FLOWER_BASIC_AUTH"]
    assert auth.startswith("askfolder:${FLOWER_PASSWORD:?")


def test_every_variable_is_documented_and_known(services: dict[str, Any]) -> None:
    example = (ROOT / ".env.example").read_text()
    used = {name for name, _ in VARIABLE.findall(TEXT)}
    assert used == {"POSTGRES_PASSWORD", "FLOWER_PASSWORD", "INBOX_USER", "ASKFOLDER_INBOX", "ASKFOLDER_PORT"}
    assert [name for name in used if not re.search(f"^#?{name}=", example, re.M)] == []
    assigned = {name for service in services.values() for name in service.get("environment", {})}
    assert {name for name in used | assigned if name.startswith("ASKFOLDER_")} <= set(names())


def test_secrets_have_no_default(services: dict[str, Any]) -> None:
    for name, rest in VARIABLE.findall(TEXT):
        assert not name.endswith(("PASSWORD", "KEY")) or rest.startswith(":?"), name
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            assert not name.endswith(("PASSWORD", "KEY", "AUTH")) or "${" in value, name
    assert "env_file" not in services["flower"], "Flower needs no key of anybody"


def test_images_are_pinned(services: dict[str, Any]) -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    images = {service["image"] for service in services.values()}
    assert len(images) == 3, "askfolder's processes share one image"
    assert len(set(bases)) == 1
    for image in [*images, *bases]:
        tag = image.partition(":")[2]
        assert re.match(r"\d+\.\d+", tag), image


def test_containers_have_minimal_privileges(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["restart"] == "unless-stopped", name
        assert "healthcheck" in service or name == "producer", name
        assert service.get("user", "10001").split(":")[0] not in ("0", "root"), name
    inboxes = [v for s in services.values() for v in s.get("volumes", []) if isinstance(v, dict)]
    assert len(inboxes) == 2
    assert all(volume["read_only"] and not volume["bind"]["create_host_path"] for volume in inboxes)


def test_servers_have_the_required_configuration(services: dict[str, Any]) -> None:
    assert services["postgres"]["volumes"] == [
        "postgres:/var/lib/postgresql"
    ]  # the path does not end with /data since PostgreSQL 18
    assert re.fullmatch(r"pgvector/pgvector:0\.8\.[4-9]-pg18-\w+", services["postgres"]["image"])
    redis = services["redis"]["command"]
    assert redis[redis.index("--maxmemory-policy") + 1] == "noeviction"


def test_the_dockerfile_follows_the_rules() -> None:
    text = (ROOT / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM") :]
    assert re.search(r"^USER 10001:10001$", final, re.M)
    install = text.index("--no-deps --require-hashes --only-binary :all: -r requirements.lock")
    assert text.index("COPY requirements.lock") < install < text.index("COPY shared"), (
        "packages are a layer of their own"
    )
    assert "shared.providers.minilm" in text[: -len(final)], "the model is built with the image"
    assert text.count("ORT_DISABLE_TELEMETRY=1") == 2, "ONNX Runtime sends telemetry by default"
    assert not re.search(r"\b(gcc|build-essential|apt-get)\b", text)
    for name in re.findall(r"^(?:ENV|ARG) (.*)$", text, re.M):
        assert not re.search(r"(KEY|PASSWORD|TOKEN)=", name)
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        assert all((ROOT / part).exists() for part in source.split()), source


def test_the_image_contains_no_private_files() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "everything is left out but what is named"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert let_in == {"Procfile", "LICENSE", "requirements.lock", "api", "shared", "worker"}
