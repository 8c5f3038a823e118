"""Every setting of the server, once: environment variables, command-line flags and the docs come from this class."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clipworks.schemas import MODEL_PATTERN, BackendName
from model_store.modality.formats import ALL_FORMATS, DEFAULT_FORMATS, HEIC_EXTRA, missing_decoder
from service.cgroups import CGROUPS, OWN_GROUP, cpu_quota
from service.http.origins import parse_origin

PREFIX = "CLIPWORKS_"
# Variables of other programs of this project: not settings of the server, and no misspelling of one.
_CLIENTS = frozenset({"URL", "API_KEY"})
_FOREIGN = _CLIENTS | {"TEST_DATA", "TEST_MILVUS", "BIND", "PUBLISH", "ARTIFACTS", "PHOTOS", "MEMORY", "VERSION"}
# What Kubernetes and Docker put into the environment of every container beside a service called clipworks.
_LINK_NAME = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)")
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
_CREDENTIAL = re.compile(r"(?<![A-Z])(API_?)?(KEY|TOKEN|SECRET|PASSWORD|AUTH)", re.IGNORECASE)
_MIB = 2**20
DECODE_BYTES_PER_WORKER = 512 * _MIB
IN_MEMORY = "memory"

ModelName = Annotated[str, Field(pattern=MODEL_PATTERN)]
HUB_PREFIX = "hub:"  # `clipworks serve` pulls such a model and then serves it under the name it has in the store
_DEFAULT_MODEL = re.compile(rf"{MODEL_PATTERN}|^{HUB_PREFIX}[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")


def _of_a_model_s_form(model: str) -> str:
    if not _DEFAULT_MODEL.fullmatch(model):
        raise ValueError(f"expected a model's name, name@version or {HUB_PREFIX}ORG/REPO, got {model[:100]!r}")
    return model


DefaultModel = Annotated[str, AfterValidator(_of_a_model_s_form)]
_KEY_LENGTHS = (8, 512)  # characters


def _of_a_key_s_length(key: SecretStr) -> SecretStr:
    shortest, longest = _KEY_LENGTHS
    if not shortest <= len(key.get_secret_value()) <= longest:
        raise ValueError(f"a key has {shortest} to {longest} characters, this one {len(key.get_secret_value())}")
    return key


Key = Annotated[SecretStr, AfterValidator(_of_a_key_s_length)]


class BadSettings(Exception):
    """A setting has a value that cannot be used; the message names it and never shows the value.

    names: of the settings that are wrong, where the values themselves are.
    """

    def __init__(self, message: str, *, names: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.names = names


class Settings(BaseSettings):
    """Read from `CLIPWORKS_<NAME>`; lists are separated by commas. Keyword arguments win over the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True, env_ignore_empty=True
    )

    # models
    model: DefaultModel | None = Field(
        None,
        description="default model, name or name@version, or hub:ORG/REPO, which `clipworks serve` pulls when the "
        "store lacks it; unset: the embedded one",
    )
    extra_models: Annotated[tuple[ModelName, ...], NoDecode] = Field((), description="more models to load at start")
    store: Path | None = Field(None, description="folder of model artifacts")
    builtin: bool = Field(True, description="offer the model that is shipped with the package")
    data: Path | None = Field(
        Path("~/.local/share/clipworks"),
        validate_default=True,
        description=f"folder of collections and label sets, for one server at a time; `{IN_MEMORY}`: lost at the end",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models run; auto takes a GPU if it can")
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        "auto", description="auto is fp16 on a GPU and fp32 on a CPU; a precision that was not built falls back to fp32"
    )
    # network
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one and prints it")
    max_connections: int = Field(
        1024, ge=1, description="open connections; a new one takes the place of one that idles, else it is a 503"
    )
    max_connections_per_address: int = Field(
        0, ge=0, description="open connections of one client address (503); 0: no limit, right behind a proxy"
    )
    header_timeout_s: float = Field(10, gt=0, description="time for a client to send a request's headers")
    body_timeout_s: float = Field(30, gt=0, description="time for a client to send a request's body")
    write_timeout_s: float = Field(30, gt=0, description="a client that reads nothing for so long is cut off")
    keep_alive_s: float = Field(5, gt=0, description="an idle connection is closed after this time")
    # access
    api_keys: Annotated[tuple[Key, ...], NoDecode] = Field(
        (), description="keys that clients must send as Authorization: Bearer; none: open to everyone"
    )
    admin_keys: Annotated[tuple[Key, ...], NoDecode] = Field(
        (), description="keys that may load and unload models; none: nobody may"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="origins or patterns of them whose web pages may call the server; * for all; none: CORS is off",
    )
    fetch_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="must be empty: this release does not fetch image_url"
    )
    # limits of one request
    max_body_bytes: int = Field(32 * _MIB, ge=1024, description="bytes of a request body (413)")
    max_items: int = Field(256, ge=1, description="inputs of a request (413)")
    max_v1_inputs: int = Field(
        2048, ge=1, description="inputs of a request to /v1/embeddings (413); images among them are items too"
    )
    max_parsed_bytes: int = Field(
        128 * _MIB,
        ge=2**16,
        description="memory and time that parsing a JSON body's values takes, as bytes beside its text, counted before "
        "(413): 48 bytes a number, 128 a string, 256 the name of a field, a list or an object",
    )
    max_image_bytes: int = Field(32 * _MIB, ge=1024, description="bytes of one encoded image (413)")
    max_pixels: int = Field(120_000_000, ge=1024, description="width x height of one image (413)")
    max_side_px: int = Field(65_535, ge=64, description="longer side of one image, in pixels (413)")
    max_aspect: float = Field(200, ge=1, le=10_000, description="longer side / shorter side of one image (413)")
    max_request_pixels: int = Field(
        1_000_000_000, ge=1024, description="width x height of all images of a request together (413)"
    )
    max_upsert_items: int = Field(
        4096, ge=1, description="items of an upsert, and ids of a deletion (413); those to encode are inputs too"
    )
    max_hits: int = Field(
        50_000, ge=1, description="queries x top_k of a search (413); a tenth of it when vectors are included"
    )
    max_label_texts: int = Field(2000, ge=1, description="inline labels x templates of a request (413)")
    max_label_chars: int = Field(
        1_000_000, ge=1, description="characters of all inline labels x templates of a request (413)"
    )
    max_predictions: int = Field(
        1_000_000, ge=1, description="predictions of a /classify: inputs x labels, or x top_k (413)"
    )
    max_conditional_texts: int = Field(
        4096,
        ge=1,
        description="inputs x texts of the labels of a /classify by a model with a conditional_head (413), which reads "
        "each text anew for each input",
    )
    max_rerank_pairs: int = Field(
        500, ge=1, description="pairs of text and picture of a reranked search: queries x `top` (413)"
    )
    max_heatmaps: int = Field(64, ge=1, description="heatmaps of a /localize: inputs x labels to be mapped (413)")
    max_masks: int = Field(64, ge=1, description="inputs x labels of a /localize that asks for masks (413)")
    image_formats: Annotated[tuple[str, ...], NoDecode] = Field(
        DEFAULT_FORMATS,
        description=f"accepted formats, of {', '.join(ALL_FORMATS)}; HEIF (HEIC) needs the extra `{HEIC_EXTRA}`",
    )
    request_timeout_s: float = Field(
        30, gt=0, description="time for a request that names no X-Request-Timeout-Ms (504)"
    )
    max_request_timeout_s: float = Field(120, gt=0, description="cap of X-Request-Timeout-Ms")
    # limits of the server
    max_bodies_bytes: int = Field(
        512 * _MIB,
        ge=1024,
        description="bytes of all request bodies that are in work, with those of their parsed values; more are refused "
        "(429)",
    )
    max_unread_bytes: int = Field(
        512 * _MIB, ge=1024, description="bytes of answers that clients have not read; beyond it the slowest is cut off"
    )
    max_wait_s: float = Field(
        2, gt=0, description="a request whose work is not expected to begin within this time is refused at once (429)"
    )
    max_queue_items: int = Field(
        512, ge=1, description="items in work for one encoder, whatever the expected wait; more are refused (429)"
    )
    max_label_set_texts: int = Field(100_000, ge=1, description="labels x templates of a stored label set (413)")
    max_label_set_chars: int = Field(
        20_000_000, ge=1, description="characters of all labels x templates of a stored label set (413)"
    )
    max_label_sets: int = Field(1000, ge=1, description="stored label sets (413)")
    max_examples: int = Field(10_000, ge=1, description="examples of one label set (413)")
    max_collections: int = Field(1000, ge=1, description="collections of the data folder (413)")
    max_offset: int = Field(10_000, ge=1, description="largest offset + top_k of a search, and largest page of items")
    class_cache: int = Field(256, ge=1, description="class matrices of inline labels that are remembered")
    class_cache_bytes: int = Field(
        64 * _MIB,
        ge=0,
        description="memory of those class matrices, all together; as much again for token ids where a model has a "
        "conditional_head",
    )
    # engine
    intra_threads: int = Field(0, ge=0, description="threads of one model run; 0: one for each core")
    decode_workers: int = Field(
        0, ge=0, description="processes that decode images, and threads for regions; 0: one for each core"
    )
    decode_timeout_s: float = Field(15, gt=0, description="what decoding one image may take (413)")
    decode_memory_bytes: int = Field(
        0,
        ge=0,
        description="memory of images being decoded at one time, at 16 bytes a pixel; 0: 512 MiB for each process",
    )
    spinning: bool = Field(False, description="idle model threads spin: lower latency, busy cores")
    arena: bool = Field(
        False, description="model sessions keep freed memory for the next run; no faster where it was measured"
    )
    max_batch_images: int = Field(16, ge=1, description="images of one model run")
    max_batch_pixels: int = Field(
        4_000_000, ge=1, description="pixels of one run of a dense encoder; one image runs whatever its size"
    )
    prepack: bool = Field(
        True,
        description="encoders copy their weights into a faster layout; off: weights in a file of their own stay its "
        "pages, of which servers on one machine share one copy",
    )
    dense_prepack: bool = Field(
        False, description="dense encoders copy their weights into a faster layout: less time, twice the memory"
    )
    max_batch_texts: int = Field(64, ge=1, description="texts of one model run")
    probe: bool = Field(
        True, description="open each graph first in a child process, so that a crash cannot end the server"
    )
    load_timeout_s: float = Field(
        300, gt=0, description="a model that is not opened and proven after this time is refused"
    )
    gpu_memory_bytes: int = Field(0, ge=0, description="limit of a GPU session's memory; 0: none")
    hang_s: float = Field(30, gt=0, description="a model run that lasts longer is given up, and its session replaced")
    exit_after_s: float = Field(30, ge=0, description="a hung run ends the process this much later; 0: never")
    # collections
    collections_backend: BackendName = Field(
        "embedded", description="where collections live: in the data folder, or in a Milvus (extra `milvus`)"
    )
    milvus_uri: str | None = Field(
        None, description="of the milvus backend: `http://host:19530`, or a path that ends in .db for milvus-lite"
    )
    milvus_token: SecretStr | None = Field(None, description="of the milvus backend: `user:password` or an API key")
    milvus_database: str | None = Field(None, description="of the milvus backend; unset: its default database")
    collection_readers: int = Field(4, ge=1, description="searches and reads of collections at one time")
    collection_scanners: int = Field(
        2, ge=1, description="filters at one time that look at many rows; no caller or collection has more than half"
    )
    search_threads: int = Field(0, ge=0, description="threads of one search; 0: one for each core")
    checkpoint_s: float = Field(30, gt=0, description="the collections' write-ahead log is truncated this often")
    media_root: Path | None = Field(
        None,
        description="folder with pictures of items, for thumbnails of those that keep none; read only, and nothing "
        "outside it; unset: off",
    )
    # life cycle and logs
    drain_grace_s: float = Field(
        1, ge=0, description="after SIGTERM: time with /readyz at 503 before connections are refused"
    )
    drain_s: float = Field(30, ge=0, description="after SIGTERM: time for requests in flight to finish")
    stop_s: float = Field(
        5,
        gt=0,
        description="after the drain: time for collections and models to close; what takes longer is left behind",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="text is key=value, json is one object a line")
    access_log: bool = Field(True, description="log one line for each request")

    @field_validator(
        "extra_models", "api_keys", "admin_keys", "cors_origins", "fetch_allow", "image_formats", mode="before"
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("data", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        if value is None or str(value) == IN_MEMORY:
            return None
        folder = os.path.expanduser(value)
        if folder.startswith("~"):
            raise ValueError(f"there is no home folder to expand ~ with; give a folder, or {IN_MEMORY}")
        return Path(folder)

    @field_validator("media_root")
    @classmethod
    def _there(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        folder = Path(os.path.abspath(os.path.expanduser(value)))
        if not folder.is_dir():
            raise ValueError("there is no such folder")
        return folder

    @field_validator("image_formats")
    @classmethod
    def _known_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        upper = tuple(name.upper() for name in value)
        if not upper or not set(upper) <= set(ALL_FORMATS):
            raise ValueError(f"expected one or more of {', '.join(ALL_FORMATS)}")
        for name in upper if upper != DEFAULT_FORMATS else ():  # by default, whatever of them is there
            if (advice := missing_decoder(name)) is not None:
                raise ValueError(f"{name} cannot be decoded by this installation: {advice}")
        return upper

    @field_validator("cors_origins")
    @classmethod
    def _known_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            parse_origin(each)
        return value

    @field_validator("fetch_allow")
    @classmethod
    def _fetch_is_off(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """The name is part of the contract; a list of hosts must not seem to have an effect."""
        if value:
            raise ValueError("this release has no fetcher, image_url is always refused; leave it unset")
        return value

    @field_validator("max_bodies_bytes")
    @classmethod
    def _holds_one(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("max_body_bytes", 0):
            raise ValueError("must not be less than max_body_bytes")
        return value

    @field_validator("max_request_timeout_s")
    @classmethod
    def _cap_is_above(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("request_timeout_s", 0):
            raise ValueError("must not be less than request_timeout_s")
        return value


@dataclass(frozen=True)
class SettingField:
    """One setting, as a command line or a table shows it."""

    name: str
    flag: str
    variable: str
    default: str
    description: str
    is_flag: bool
    choices: tuple[str, ...]


def read_settings(overrides: Mapping[str, Any]) -> Settings:
    """Settings from the environment and `overrides` (name -> value or its text), which win.

    Raises:
        BadSettings: one line for each setting that is wrong.
    """
    if "port" not in overrides and is_link("PORT", os.environ.get(f"{PREFIX}PORT", "")):
        overrides = {**overrides, "port": Settings.model_fields["port"].default}
    try:
        return Settings(**overrides)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)
        names = frozenset(str(part["loc"][0]) for part in wrong if part["loc"])
        raise BadSettings("\n".join(map(_explain, wrong)), names=names) from None


def setting_fields() -> tuple[SettingField, ...]:
    """All settings in the order of the class, for `clipworks serve --help` and docs/configuration.md."""
    return tuple(
        SettingField(
            name=name,
            flag="--" + name.replace("_", "-"),
            variable=PREFIX + name.upper(),
            default=_shown(field.default),
            description=field.description or "",
            is_flag=field.annotation is bool,
            choices=_choices(field.annotation),
        )
        for name, field in Settings.model_fields.items()
    )


def settings_table() -> str:
    """The Markdown table of docs/configuration.md."""
    rows = [
        f"| `{field.variable}` | `{field.flag}` | {f'`{field.default}`' if field.default else 'unset'} | "
        f"{field.description} |"
        for field in setting_fields()
    ]
    return "\n".join(["| variable | flag | default | meaning |", "|---|---|---|---|", *rows])


def is_link(name: str, value: str) -> bool:
    """Whether a variable (without its prefix) is an orchestrator's address of a service, such as PORT=tcp://10.0.0.1:80."""
    return bool(_LINK_NAME.fullmatch(name) or _LINK_VALUE.match(value))


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that begin with CLIPWORKS_ and mean nothing -> the setting that was probably meant, if one is near."""
    known = {name.upper() for name in Settings.model_fields}
    meant = sorted(known | _CLIENTS)
    found: dict[str, str | None] = {}
    for variable in sorted(environment):
        name = variable.removeprefix(PREFIX)
        if name == variable or name.upper() in known | _FOREIGN or is_link(name, environment[variable]):
            continue
        near = difflib.get_close_matches(name.upper(), meant, n=1, cutoff=0.75)
        found[variable] = f"{PREFIX}{near[0]}" if near else None
    return found


def refuse_open_by_typo(settings: Settings, environment: Mapping[str, str]) -> None:
    """A misspelt CLIPWORKS_API_KEYS must not leave the server open to everyone.

    Raises:
        BadSettings: there are no keys, and the environment has a CLIPWORKS_ variable that looks like one. The setting
            itself, set to nothing, says that an open server is meant.
    """
    if settings.api_keys or f"{PREFIX}API_KEYS" in environment:
        return
    for variable in (f"{PREFIX}API_KEY", *unknown_variables(environment)):  # API_KEY is the clients' variable
        if environment.get(variable) and _CREDENTIAL.search(variable):
            raise BadSettings(
                f"{variable} is set, but the server's keys are {PREFIX}API_KEYS, which is not: it would be open to "
                f"everyone. Set {PREFIX}API_KEYS; if open is meant, set it to nothing ({PREFIX}API_KEYS=)"
            )


def available_cores(root: Path = CGROUPS, own: Path = OWN_GROUP) -> int:
    """Cores that this process may really use: its affinity, cut by the quota of its control group and those above.

    root, own: as `cpu_quota`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root, own)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _explain(error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such setting"
    message = error["msg"].removeprefix("Value error, ")
    return f"{PREFIX}{name.upper()} (--{name.replace('_', '-')}): {message}"


def _shown(default: Any) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return ",".join(str(part) for part in default)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return str(default).lower() if isinstance(default, bool) else str(default)


def _choices(annotation: Any) -> tuple[str, ...]:
    arguments = getattr(annotation, "__args__", ())
    return tuple(arguments) if arguments and all(isinstance(each, str) for each in arguments) else ()
