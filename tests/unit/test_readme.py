"""The READMEs keep their word: each command can be typed, each table is whole, each link and path leads somewhere."""

import ast
import re
import shlex
import tomllib
from dataclasses import fields
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Match, Route
from temporalio.common import WorkerDeploymentVersion

from activities import errors
from activities.bucket.dzi import tile_name
from activities.bucket.keys import UploadRef, unreadable_event, webhooks_record
from activities.bucket.records import Forecast, Layout, Receipt, SheetState, Snapshot, UploadOptions, camel_case
from activities.bucket.storage import ROOM_KEY
from activities.errors import InvalidRequest, SiteLinkError
from api.access.policies import Needs
from api.access.routes import GuardedRoute
from api.cli.__main__ import build_parser
from api.http.problems import STATUS
from api.paths import ORGANIZATION
from api.uploads import LAYERS, LAYOUT, MARKUPS, OPTIONS, read_options
from deploy.check.versions import left_behind
from tests.monitoring import RUNBOOK
from tests.unit.test_settings_documented import documented_settings
from worker import schedules
from workflows.messages import SEARCH_ATTRIBUTES

ROOT = Path(__file__).parents[2]
MAIN, EMBED, OPERATE, R2_EVENTS = (ROOT / name for name in ("README.md", "api/README.md", "deploy/README.md", "deploy/r2-events/README.md"))
UPGRADE, CHANGES = OPERATE.with_name("UPGRADING.md"), OPERATE.with_name("CHANGELOG.md")
THREATS, CAPACITY, SECURITY = (ROOT / name for name in ("deploy/THREATS.md", "deploy/CAPACITY.md", ".github/SECURITY.md"))
READMES = (MAIN, EMBED, OPERATE, R2_EVENTS, UPGRADE, CHANGES, THREATS, CAPACITY, SECURITY, RUNBOOK)
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
COMMANDS = [
    words
    for readme in READMES
    for block in BLOCK.findall(readme.read_text())
    for line in block.splitlines()
    if (words := shlex.split(line.replace("<account>", "account"), comments=True))
]
CODE = re.compile(r"`([^`]+)`")
UPLOAD_ID = "0198c0de-0000-7000-8000-000000000001"
PLAN_PATH = "/v1/organizations/{organization}/projects/{project}/plans/{plan}"


def commands(*beginning: str) -> list[list[str]]:
    """The commands of all READMEs that begin with these words."""
    return [words for words in COMMANDS if words[: len(beginning)] == list(beginning)]


def section(readme: Path, heading: str) -> str:
    """The text below a heading, to the next heading of any level."""
    (_, after) = re.split(rf"^#+ {re.escape(heading)}$", readme.read_text(), flags=re.MULTILINE)
    return re.split(r"^#", after, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table, without the heads."""
    lines = text.splitlines()
    heads = {index - 1 for index, line in enumerate(lines) if line.startswith("|---")}
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for index, line in enumerate(lines)
        if line.startswith("|") and index not in heads and index - 1 not in heads
    ]


# Commands


OF_THE_SYSTEM = ("cd", "chmod", "du", "export", "git pull", "grep", "mkdir", "tail")
CHECKED = (
    "make",
    "uv run sitelink",
    "uv run python -m",
    "curl",
    "npx wrangler",
    "temporal",
    "kubectl",
    "docker compose",
    "for name in",
    "for service in",
    "prometheus",
    "promtool",
    "docker run",
    "docker build",
    *OF_THE_SYSTEM,
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_of_a_kind_that_is_checked_here(words: list[str]) -> None:
    """No command escapes the tests below; some are the system's. The commands of the runbook run in another test."""
    assert " ".join(words).startswith(CHECKED)


@pytest.mark.parametrize("words", commands("uv", "run", "sitelink"), ids=" ".join)
def test_command_line_takes_the_arguments(words: list[str]) -> None:
    """The command line knows the command and its options."""
    arguments = [re.sub(r"^REF$", "acme/tower/architectural/UPLOAD", word).replace("UPLOAD", UPLOAD_ID) for word in words[3:]]
    assert build_parser().parse_args(arguments).command == words[3]


def test_readme_names_every_command() -> None:
    """No command is left for a person to find."""
    (known,) = [action.choices for action in build_parser()._actions if action.dest == "command"]
    assert known is not None
    assert {words[3] for words in commands("uv", "run", "sitelink")} == set(known)


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_target_of_make_exists(words: list[str]) -> None:
    """The Makefile has the target and its variables."""
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
    assert all(re.search(rf"\b{word.split('=')[0]}\b", makefile) for word in words[2:])


@pytest.mark.parametrize("words", commands("uv", "run", "python", "-m"), ids=" ".join)
def test_module_can_be_run_and_knows_its_options(words: list[str]) -> None:
    """Python finds the program, and the program's source has the options as words."""
    name, options = words[4], [word for word in words[5:] if word.startswith("--") or word.isalpha()]
    spec = find_spec(f"{name}.__main__") if (ROOT / name.replace(".", "/")).is_dir() else find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    constants = {node.value for node in ast.walk(ast.parse(Path(spec.origin).read_text())) if isinstance(node, ast.Constant)}
    assert constants >= set(options)
    assert "__main__" in constants


@pytest.mark.parametrize("words", commands("docker", "run"), ids=" ".join)
def test_image_runs_a_program_that_exists(words: list[str]) -> None:
    """Behind the image's name stands what follows ``python -m``."""
    (image,) = [index for index, word in enumerate(words) if word.startswith("sitelink:")]
    name = words[image + 1]
    assert find_spec(f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name) is not None


@pytest.mark.parametrize("words", [*commands("docker", "build"), *commands("docker", "buildx")], ids=" ".join)
def test_image_is_built_from_a_recipe_that_exists(words: list[str]) -> None:
    """It has the arguments."""
    options = dict(pairwise(words))
    recipe = (ROOT / options["--file"]).read_text()
    assert f"ARG {options.get('--build-arg', 'VERSION').partition('=')[0]}" in recipe


@pytest.mark.parametrize("words", commands("export"), ids=" ".join)
def test_exported_setting_is_documented(words: list[str]) -> None:
    """``deploy/env.example`` has it, or it tells Docker Compose which file to take."""
    assert {word.split("=")[0] for word in words[1:]} <= documented_settings() | {"COMPOSE_FILE", "COMPOSE_PROJECT_NAME"}


def test_directories_exist() -> None:
    """A person can go where the READMEs say."""
    assert all((ROOT / directory).is_dir() for _, directory in commands("cd"))


@pytest.mark.parametrize("words", commands("curl"), ids=" ".join)
def test_curl_asks_for_a_route(words: list[str], app: Starlette) -> None:
    """The API has the address for the method."""
    path = words[-1].removeprefix("http://127.0.0.1:8000").split("?")[0]
    scope: dict[str, object] = {"type": "http", "path": path, "method": dict(pairwise(words)).get("-X", "GET"), "headers": []}
    assert any(route.matches(scope)[0] is Match.FULL for route in app.routes)


def test_names_for_cloudflare_are_those_of_the_worker() -> None:
    """Queues and the secret are called as in the Worker and its configuration."""
    known = "".join((R2_EVENTS.parent / name).read_text() for name in ("worker.js", "wrangler.toml"))
    ours = {word for words in commands("npx", "wrangler") for word in words if word.lower().startswith("sitelink")}
    assert ours
    assert all(re.search(rf"\b{name}\b(?!-)", known) for name in ours)


def test_names_for_temporal_are_ours() -> None:
    """The schedules exist, and no search attribute is forgotten."""
    named = {words[words.index("--schedule-id") + 1] for words in commands("temporal", "schedule")}
    assert named == {schedules.RECONCILE, schedules.SWEEP_ALL}
    (create,) = commands("temporal", "operator", "search-attribute")
    # With one type for several names, the program makes only the first.
    assert tuple(create[4:]) == tuple(word for name in SEARCH_ATTRIBUTES for word in ("--name", name, "--type", "Keyword"))


def test_files_of_prometheus_exist() -> None:
    """A command names a configuration that is there."""
    named = [word for words in COMMANDS if words[0] in ("prometheus", "promtool") for word in words if word.startswith("deploy/")]
    assert named
    assert all((ROOT / name).is_file() for name in named)


def test_command_that_moves_uploads_is_that_of_deploy_check() -> None:
    """Whoever reads UPGRADING.md and whoever runs the check move the runs of lost workers alike."""
    (command,) = commands("temporal", "workflow", "reset")
    old, new = (WorkerDeploymentVersion("sitelink", build) for build in ("0.1.0", "0.2.0"))
    advice = left_behind(old, new, 1, has_workers=False).advice
    assert shlex.split(advice[advice.index("temporal ") :]) == command


def test_changelog_has_the_version_of_the_package() -> None:
    """The newest entry is about what is built here."""
    (newest, *_) = re.findall(r"^## \[([^]]+)\]", CHANGES.read_text(), re.MULTILINE)
    assert newest == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


# Links and paths


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(readme: Path) -> None:
    """To a file of the project, and to a heading of it if the link says so."""
    for target in re.findall(r'(?:\]\(|src=")([^)\s"]+)', readme.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (readme.parent / path).resolve() if path else readme
        assert file.is_file(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_every_path_of_where_to_change_what_exists() -> None:
    """A contributor finds the file that the README sends him to."""
    cells = " ".join(cell for row in rows(section(MAIN, "Change it")) for cell in row)
    paths = [path for path in CODE.findall(cells) if re.fullmatch(r"[a-z0-9_]+(/[a-z0-9_.]*)+", path)]
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_proof_of_the_threat_model_exists() -> None:
    """Each line against a threat names tests, and each of these is there."""
    proofs = {
        named for _, _, *cells in rows(THREATS.read_text()) for cell in cells for named in CODE.findall(cell) if named.startswith("tests/")
    }
    assert len(proofs) > 50
    for proof in proofs:
        file, _, name = proof.partition("::")
        assert (ROOT / file).is_file(), proof
        assert not name or re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), proof


# Tables


def test_every_route_is_in_the_table(app: Starlette) -> None:
    """The table has each method and address of the API, and no other."""
    routes = {
        f"{method} {re.sub(':path}|:int}', '}', route.path)}"
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    told = [
        re.sub(r"\bO/", f"{ORGANIZATION}/", re.sub(r"\bP/", f"{PLAN_PATH}/", re.sub(r"\bB\b", "P/uploads", request)))
        for first, *_ in rows(section(EMBED, "Routes"))
        for request in CODE.findall(first)
    ]
    assert sorted(told) == sorted(routes)


def test_every_route_says_what_it_needs(app: Starlette) -> None:
    """The second column of the table is the policy of the route."""
    for first, needs, *_ in rows(section(EMBED, "Routes")):
        for request, need in zip(CODE.findall(first), needs.split("; ") if "session" in first else [needs] * 9, strict=False):
            method, path = re.sub(
                r"\bO/", f"{ORGANIZATION}/", re.sub(r"\bP/", f"{PLAN_PATH}/", re.sub(r"\bB\b", "P/uploads", request))
            ).split(" ")
            (policy,) = (
                route.policy
                for route in app.routes
                if isinstance(route, GuardedRoute) and method in (route.methods or ()) and re.sub(":path}|:int}", "}", route.path) == path
            )
            deep = f"; {policy.deep_scope} if deep" if policy.deep_scope else ""
            if policy.header_scope:
                deep += f"; {policy.header_scope[1]} with `SiteLink-Webhook`"
            kinds = {Needs.TOKEN: "a token", Needs.CREDENTIAL: "any credential", Needs.SYSTEM: "`system`"}
            kinds |= {Needs.NOTHING: need, Needs.SCOPE: f"{policy.scope}{deep}"}
            told = kinds[policy.needs]
            assert told == need, request
            assert policy.needs is not Needs.NOTHING or need in ("", "nothing", "a signature")


def test_every_option_of_an_upload_is_in_the_table() -> None:
    """With its default and its range."""
    table = {CODE.findall(name)[0]: (default, allowed) for name, default, allowed, _ in rows(section(EMBED, "Sending a plan"))}
    default, allowed = table.pop(LAYOUT)
    assert (default, allowed) == (UploadOptions().layout, ", ".join(f"`{layout}`" for layout in Layout))
    assert table.pop(MARKUPS)[0] == str(UploadOptions().markups).lower()
    assert not table.pop(LAYERS)[0]
    assert table.keys() == OPTIONS.keys()
    for name, (default, allowed) in table.items():
        assert int(default.replace(",", "")) == getattr(UploadOptions(), OPTIONS[name])
        low, high = (int(number.replace(",", "")) for number in allowed.split(" to "))
        for value in (low, high):
            read_options({name: str(value)})
        for value in (low - 1, high + 1):
            with pytest.raises(InvalidRequest):
                read_options({name: str(value)})


@pytest.mark.parametrize("record", [Snapshot, SheetState, Forecast, Receipt])
def test_every_wire_name_of_the_progress_is_explained(record: type) -> None:
    """A client finds each name that it may receive."""
    told = {name for row in rows(section(EMBED, "The progress")) for cell in row for name in CODE.findall(cell)}
    assert {camel_case(field.name) for field in fields(record)} <= told


def test_every_type_of_note_is_explained() -> None:
    """The table has each type that the code makes, and no other."""
    sources = [path.read_text() for path in (ROOT / "activities").rglob("*.py")]
    made = {name for source in sources for name in re.findall(r'\bNote\("(\w+)"|MORE_NOTES = "(\w+)"', source) for name in name if name}
    told = [name for first, *_ in rows(section(EMBED, "The progress")) for name in CODE.findall(first) if name[0].isupper()]
    assert sorted(told) == sorted(made)


def test_every_error_is_in_the_table() -> None:
    """With the HTTP status that a request gets, where the table gives one."""
    kinds = {
        kind.__name__: kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, SiteLinkError) and not kind.__subclasses__()
    }
    told = [(name, status) for names, status, _ in rows(section(EMBED, "Errors")) for name in CODE.findall(names)]
    assert sorted(name for name, _ in told) == sorted([*kinds, "InternalError"])
    for name, status in told:
        if status and name in kinds:
            assert int(status) == next(STATUS[base] for base in kinds[name].__mro__ if base in STATUS), name


def test_every_key_of_the_bucket_is_spelled_as_the_code_spells_it() -> None:
    """The tree of the README names the objects that the code writes."""
    ref = UploadRef("org", "project", "plan", "upload")
    hashed = re.compile(r"[0-9a-f]{64}")
    spelled = {
        webhooks_record("org"),
        ref.source,
        ref.source_record,
        ref.begun,
        ref.part(1),
        ref.record,
        ref.manifest,
        ref.reopened,
        ref.thumbnail(1),
        ref.sheet_record(1),
        ref.descriptor(1),
        ref.archive(1),
        ref.tiles_prefix(1) + tile_name(2, 3, 4),
        hashed.sub("sha256", ref.plan_ref.idempotency_key("key")),
        hashed.sub("sha256", unreadable_event(b"message")),
        ROOM_KEY,
    }
    tree, prefixes = set(), [""]
    (block,) = re.findall(r"```\n(.*?)```", section(OPERATE, "What is in the bucket"), re.DOTALL)
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        name = re.split(r"  +", line.strip())[0].replace("{sha256 of Idempotency-Key}", "{sha256}")
        prefixes[depth + 1 :] = [prefixes[depth] + name]
        if not name.endswith("/"):
            tree.add(prefixes[-1])
    values = {"n": "1", "level": "2", "col": "3", "row": "4"}
    assert {re.sub(r"{(\w+)}", lambda found: values.get(found[1], found[1]), key) for key in tree} == spelled


def test_every_schedule_is_in_the_table() -> None:
    """By its id in Temporal."""
    told = [CODE.findall(name)[0] for name, *_ in rows(section(OPERATE, "Schedules"))]
    assert told == [schedules.SWEEP, schedules.SWEEP_ALL, schedules.RECONCILE]
