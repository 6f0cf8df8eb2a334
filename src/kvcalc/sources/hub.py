"""Models on the Hub: config.json and the safetensors headers, never a weight.

The extra ``hub`` brings huggingface_hub, which makes the requests: it knows the endpoint, the token, proxies,
certificates and the local cache (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE), and follows redirects without taking
the token to another host. The answers are read here and not by its ``get_safetensors_metadata``, which reads whatever a
server sends: each is bounded in bytes and in time, and one header is in memory at a time.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Full, Queue
from typing import Any
from urllib.parse import unquote, urlsplit

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError, KVCalcError, NetworkError, quote
from kvcalc.sources.checkpoint import LARGEST_CONFIG, SIDECARS, parse_config, with_sidecar
from kvcalc.sources.config import read_config
from kvcalc.sources.files import decoded, read_bytes
from kvcalc.sources.safetensors import (
    INDEX_NAME,
    LARGEST_HEADER,
    LARGEST_INDEX,
    StoredTensor,
    StoredWeights,
    add_up,
    header_length,
    listed_tensors,
    parse_header,
    parse_index,
    read_weights,
    with_stored_weights,
)

_CONFIG = "config.json"
_SINGLE_FILE = "model.safetensors"
_MOST_BYTES = 2**29
#: Most headers are shorter, and one request then answers for a file.
_FIRST_BYTES = 2**17
_REQUESTS_AT_ONCE = 8
#: Statuses of a server that is busy: asked again after a moment.
_BUSY = (429, 500, 502, 503, 504)
_REFERENCE = re.compile(r"hf:([\w.-]{1,96}(?:/[\w.-]{1,96})?)(?:#([\w./-]{1,200}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_RESOLVE = re.compile(r"/([\w.-]+(?:/[\w.-]+)?)/resolve/", re.ASCII)
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", re.ASCII)


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds: before progress is shown, for one answer, for everything, and for a busy server."""

    quiet: float = 1.0
    answer: float = 10.0
    whole: float = 120.0
    busy: tuple[float, ...] = (1.0, 3.0)


@dataclass(frozen=True)
class HubModel:
    """What the Hub says of a model.

    Attributes:
        name: the repository.
        config: the dictionary of its config.json.
        weights: the bytes of its safetensors files; None where it has none.
        source: the address with its revision.
        notes: what a reader must know.
    """

    name: str
    config: Mapping[str, Any]
    weights: StoredWeights | None
    source: str
    notes: tuple[str, ...] = ()


def load_from_hub(reference: str) -> Architecture:
    """The architecture and the stored weights of ``hf:org/name`` or ``hf:org/name#revision``.

    Raises:
        NetworkError: the extra is missing, nothing answers, or the Hub refuses; the message never holds a token.
        KVCalcError: the model's config.json or a header is wrong, or describes something nobody here knows.
    """
    model = fetch(reference)
    try:
        architecture = read_config(model.config, model.name)
    except KVCalcError as error:
        raise error.at(f"{_CONFIG} of {model.source}") from None
    known = architecture.provenance
    told = replace(known, sources=(*known.sources, model.source), notes=(*known.notes, *model.notes))
    architecture = architecture.changed(provenance=told)
    if model.weights is None:
        return architecture
    return with_stored_weights(architecture, model.weights, f"safetensors headers of {model.source}")


def fetch(reference: str, patience: Patience | None = None) -> HubModel:
    """The config.json and the weights' headers of a model, from the Hub or from the local cache.

    Raises:
        NetworkError: see :func:`load_from_hub`.
        InputError: a reference, a config.json or a header that is wrong.
    """
    _check_address(os.environ.get("HF_ENDPOINT"))  # huggingface_hub cannot even be imported with some
    try:
        from huggingface_hub import constants
    except ImportError:
        raise NetworkError(
            "reading the Hub needs the package huggingface_hub", hint="pip install 'kvcalc[hub]'"
        ) from None
    name, revision = _named(reference)
    cached = _from_cache(name, revision)
    if cached is not None and cached.weights is not None and _COMMIT.fullmatch(revision):
        return cached  # a commit never changes
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            raise NetworkError(
                f"{reference} is not in the local cache, and HF_HUB_OFFLINE is set",
                hint="unset HF_HUB_OFFLINE, or fetch the model's files first",
            )
        return cached
    repository = _Repository(name, revision, constants.ENDPOINT, _headers(), patience or Patience())
    try:
        return _waited_for(repository)
    except _Unreachable as error:
        if cached is None:
            raise NetworkError(error.message, hint=error.hint) from None
        note = f"{error.message}: the answer is that of the local cache"
        return replace(cached, notes=(*cached.notes, note))


class _Unreachable(NetworkError):
    """Nothing answered: what is in the local cache is then better than nothing."""


class _NoSuchFile(NetworkError):
    """The repository has no file of that name, which may be quite right."""


def _named(reference: str) -> tuple[str, str]:
    """The repository and the revision of a reference."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    match = _REFERENCE.fullmatch(reference)
    hint = "write hf:org/name, or hf:org/name#revision"
    if match is None or ".." in reference:
        raise InputError(f"{quote(reference)} names no model on the Hub", hint=hint)
    try:
        validate_repo_id(match[1])
    except HFValidationError:  # a name that ends in .git, begins with a hyphen, and more of the Hub's own rules
        raise InputError(f"{quote(reference)} is no name that the Hub gives", hint=hint) from None
    return match[1], match[2] or "main"


def _check_address(address: str | None) -> None:
    """Refuse what is no address of a Hub; None is the Hub's own."""
    if address is None:
        return
    try:
        parts = urlsplit(address)
        sound = address.isprintable() and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        hint = "unset HF_ENDPOINT, or write an address such as https://huggingface.co"
        raise InputError(f"HF_ENDPOINT is no web address: {quote(address)}", hint=hint)


def _headers() -> dict[str, str]:
    """User agent and token, as huggingface_hub finds it; the token is checked before anything could print it."""
    from huggingface_hub import constants, get_token

    from kvcalc import __version__

    # As the file is: the length of a compressed one says nothing of what it becomes.
    headers = {"User-Agent": f"kvcalc/{__version__}", "Accept-Encoding": "identity"}
    try:
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except Exception:
        # A token file that cannot be read, a login that expired: the message might quote it.
        raise NetworkError(
            "the Hub's token cannot be read", hint="set HF_TOKEN, or run 'hf auth login' again"
        ) from None
    if token and not (token.isascii() and token.isprintable()):
        raise NetworkError("HF_TOKEN holds characters that no token has", hint="copy it anew from the Hub's settings")
    return headers | ({"Authorization": f"Bearer {token}"} if token else {})


def _from_cache(name: str, revision: str) -> HubModel | None:
    """The model as far as huggingface_hub's cache holds it."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, _CONFIG, revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    source = f"hf:{name}#{folder.name} in the local cache"
    table = with_sidecar(parse_config(read_bytes(Path(config), LARGEST_CONFIG), config), folder)
    try:
        return HubModel(name, table, read_weights(folder), source)
    except InputError:
        note = "the local cache does not hold all weights: they are computed"
        return HubModel(name, table, None, source, (note,))


@dataclass(frozen=True)
class _Answer:
    """A file, or the beginning of one: its bytes, how long the whole is, and the commit that answered."""

    data: bytes
    whole_bytes: int | None
    commit: str | None


@dataclass
class _Repository:
    """One model at one revision; the first answer pins the commit for those that follow."""

    name: str
    revision: str
    endpoint: str
    headers: dict[str, str] = field(repr=False)
    patience: Patience
    bytes_left: int = _MOST_BYTES
    files_done: int = 0
    files_all: int = 0
    new_name: str | None = None

    def __post_init__(self) -> None:
        self.until = time.monotonic() + self.patience.whole
        self.asked = self.revision
        self.host = urlsplit(self.endpoint).netloc.rpartition("@")[2]
        self.counting = threading.Lock()

    def fetch(self) -> HubModel:
        """config.json, the index where there is one, and every header."""
        try:
            config = self.read(_CONFIG, LARGEST_CONFIG)
        except _NoSuchFile as error:
            hint = f"a GGUF file can be downloaded and named: see {self.host}/{self.name}/tree/{self.asked}"
            raise NetworkError(f"{error.message}: {_CONFIG}", hint=hint) from None
        if config.commit is not None and _COMMIT.fullmatch(config.commit):
            self.revision = config.commit
        source = f"hf:{self.name}#{self.revision}"
        table = parse_config(config.data, f"{_CONFIG} of {source}")
        weights = self.weights()
        if weights is not None and weights.elements is None and "quantization_config" not in table:
            for name in SIDECARS:
                with suppress(_NoSuchFile):
                    sidecar = self.read(name, LARGEST_CONFIG)
                    table = {**table, name: parse_config(sidecar.data, f"{name} of {source}")}
                    break
        notes = []
        if self.new_name is not None:
            notes.append(f"hf:{self.name} has been renamed: it is hf:{self.new_name} now")
        if weights is None:
            notes.append(f"hf:{self.name} has no safetensors file: the weights are computed from its {_CONFIG}")
        return HubModel(self.name, table, weights, source, tuple(notes))

    def weights(self) -> StoredWeights | None:
        """What the weights take, from the index and the headers; None where there are none."""
        try:
            place = self.place(INDEX_NAME)
            placed = parse_index(decoded(self.read(INDEX_NAME, LARGEST_INDEX).data, place), place)
        except _NoSuchFile:
            self.files_all = 1
            try:
                return add_up([self.header(_SINGLE_FILE, self.beginning(_SINGLE_FILE))])
            except _NoSuchFile:
                return None
        self.files_all = len(placed)
        return add_up(
            listed_tensors(self.header(file, beginning), placed.pop(file), self.place(file))
            for file, beginning in self.beginnings(list(placed))
        )

    def place(self, file: str) -> str:
        """A file as errors name it."""
        return f"{file} of hf:{self.name}"

    def beginnings(self, files: list[str]) -> Iterator[tuple[str, _Answer]]:
        """The beginning of each file, several read at a time, as they come.

        The threads are daemons: an interrupted program does not wait for a slow server.
        """
        found: Queue[tuple[str, _Answer] | BaseException] = Queue(maxsize=1)
        waiting = iter(files)
        ended = threading.Event()

        def run() -> None:
            while not ended.is_set():
                with self.counting:
                    file = next(waiting, None)
                if file is None:
                    return
                try:
                    put((file, self.beginning(file)))
                except BaseException as error:
                    put(error)

        def put(item: tuple[str, _Answer] | BaseException) -> None:
            while not ended.is_set():
                with suppress(Full):  # the one before it is being parsed
                    found.put(item, timeout=0.1)
                    return

        try:
            for _ in range(min(_REQUESTS_AT_ONCE, len(files))):
                threading.Thread(target=run, daemon=True).start()
            for _ in files:
                item = found.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            ended.set()

    def beginning(self, file: str) -> _Answer:
        """The first bytes of a file, which hold the whole of most headers."""
        return self.read(file, _FIRST_BYTES, (0, _FIRST_BYTES - 1))

    def header(self, file: str, beginning: _Answer) -> dict[str, StoredTensor]:
        """The tensors of a file; what its beginning lacks of its header is read now, long ones one after the other."""
        data, whole_bytes = beginning.data, beginning.whole_bytes
        if whole_bytes is None:
            raise NetworkError(f"{self.host} does not say how long {quote(file)} is", hint="is HF_ENDPOINT right?")
        end = 8 + header_length(data, whole_bytes, self.place(file))
        if len(data) < end:
            data += self.read(file, LARGEST_HEADER + 8, (len(data), end - 1)).data
        tensors = parse_header(data[8:end], whole_bytes - end, self.place(file))
        self.files_done += 1
        return tensors

    def read(self, file: str, most: int, span: tuple[int, int] | None = None) -> _Answer:
        """At most ``most`` bytes of a file; with a ``span`` those from its first to its last byte.

        Raises:
            NetworkError: refused, slow, cut off, or longer than ``most``.
        """
        from huggingface_hub import get_session, hf_hub_url

        url = hf_hub_url(self.name, file, revision=self.revision, endpoint=self.endpoint)
        ranged = {"Range": f"bytes={span[0]}-{span[1]}"} if span else {}
        waits = iter(self.patience.busy)
        while True:
            try:
                with get_session().stream(
                    "GET", url, headers=self.headers | ranged, timeout=self.patience.answer, follow_redirects=True
                ) as response:
                    wait = next(waits, None) if response.status_code in _BUSY else None
                    if wait is None:
                        return self.answer(response, most, span)
            except KVCalcError:
                raise
            except Exception as error:
                # A server may close a connection that it has promised to keep.
                wait = next(waits, None) if "RemoteProtocolError" in _kinds(error) else None
                if wait is None:
                    raise self.failed(error) from None
            time.sleep(wait)

    def answer(self, response: Any, most: int, span: tuple[int, int] | None) -> _Answer:
        """What a response holds, or why it holds nothing."""
        self.check_address(response)
        if response.status_code >= 300:
            raise self.refused(response.status_code, response.headers)
        length = response.headers.get("Content-Length", "")
        whole = wanted = int(length) if re.fullmatch(r"\d{1,18}", length) else None
        skipped = 0
        if span is not None:
            wanted = span[1] - span[0] + 1
            part = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status_code == 206 and part is not None and int(part[1]) == span[0]:
                whole = int(part[2])
            elif response.status_code == 200:  # a server without ranges sends the file from its beginning
                skipped = span[0]
            else:
                raise NetworkError(
                    f"{self.host} answers another part of a file of hf:{self.name} than it was asked",
                    hint="is HF_ENDPOINT right?",
                )
            if whole is not None:
                wanted = min(wanted, max(0, whole - span[0]))
        if (wanted or 0) + skipped > most:
            raise self.too_large(f"a file of hf:{self.name} is larger than the {most:,} bytes that it may have")
        data = self.body(response, None if wanted is None else skipped + wanted, most)
        return _Answer(data[skipped:], whole, response.headers.get("X-Repo-Commit"))

    def body(self, response: Any, wanted: int | None, most: int) -> bytes:
        """The bytes of an answer, up to those that are wanted."""
        data = bytearray()
        pieces = response.iter_raw()
        while wanted is None or len(data) < wanted:
            if time.monotonic() > self.until:
                raise TimeoutError
            try:
                piece = next(pieces, b"")
            except Exception as error:
                if "ProtocolError" in _kinds(error):
                    piece = b""  # it hung up
                else:
                    raise
            if not piece:
                break
            data += piece
            with self.counting:
                self.bytes_left -= len(piece)
            if (len(data) > most and wanted is None) or self.bytes_left < 0:
                raise self.too_large(f"the files of hf:{self.name} are larger than they may be")
        if wanted is not None and len(data) < wanted:
            raise NetworkError(
                f"the answer for hf:{self.name} was cut off after {len(data):,} of {wanted:,} bytes", hint="try again"
            )
        return bytes(data[:wanted])

    def check_address(self, response: Any) -> None:
        """Where an answer came from after all redirects: a new name of the model is noted, a plain address refused."""
        if self.endpoint.startswith("https:") and response.url.scheme != "https":
            raise NetworkError(
                f"the Hub sends hf:{self.name} to an address that is not safe", hint="is HF_ENDPOINT right?"
            )
        moved = _RESOLVE.match(unquote(response.url.path))
        if moved and moved[1] != self.name and response.url.host == urlsplit(self.endpoint).hostname:
            self.new_name = moved[1]

    def too_large(self, message: str) -> NetworkError:
        return NetworkError(message, hint="is HF_ENDPOINT right?")

    def refused(self, code: int, headers: Any) -> KVCalcError:
        """A status of the Hub's as an error."""
        name, with_token = self.name, "Authorization" in self.headers
        reason = headers.get("X-Error-Code", "")
        page = f"{urlsplit(self.endpoint).scheme}://{self.host}/{name}"
        if reason == "EntryNotFound":
            return _NoSuchFile(f"hf:{name} has no such file", hint="is the upload complete?")
        if reason == "RevisionNotFound":
            return NetworkError(
                f"hf:{name} has no such revision", hint="a branch, a tag or a commit stands behind the #"
            )
        if reason == "GatedRepo" or (code == 403 and reason != "RepoNotFound"):
            hint = f"ask for access at {page}" + ("" if with_token else ", then set HF_TOKEN")
            return NetworkError(f"access to hf:{name} is restricted", hint=hint)
        if code == 404 and not reason:  # a mirror that gives no reasons: a file, or the whole repository
            return _NoSuchFile(f"{self.host} has no such file of hf:{name}, or no such model", hint="check its name")
        if code in (401, 404) or reason == "RepoNotFound":
            hint = "is the token in HF_TOKEN still good, and may it see the model?"
            if not with_token:
                hint = "check its name; a private or restricted model needs HF_TOKEN"
            return NetworkError(f"{self.host} shows no model hf:{name}", hint=hint)
        if code == 416:  # a range behind the end
            return NetworkError(f"a file of hf:{name} is shorter than its header", hint="it is truncated on the Hub")
        if code == 429:
            seconds = headers.get("Retry-After", "")
            wait = f"in {int(seconds):,} seconds" if re.fullmatch(r"\d{1,6}", seconds) else "later"
            return NetworkError(f"{self.host} answers too many requests already", hint=f"try again {wait}")
        return NetworkError(f"{self.host} answers with HTTP status {code}", hint="try again later")

    def failed(self, error: Exception) -> Exception:
        """A request that came to nothing as an error; what is no failure of a request stays what it is."""
        kinds = _kinds(error)
        if isinstance(error, TimeoutError) or "TimeoutException" in kinds:
            return _Unreachable(f"{self.host} takes too long to answer for hf:{self.name}", hint="try again later")
        if "NetworkError" in kinds or "ProxyError" in kinds:
            return _Unreachable(
                f"no connection to {quote(self.host)}: {quote(_reason(error))[1:-1]}",
                hint="check the network; the local cache is read with HF_HUB_OFFLINE=1",
            )
        if "RequestError" in kinds or "InvalidURL" in kinds:
            return NetworkError(f"{quote(self.host)} does not answer as the Hub does", hint="is HF_ENDPOINT right?")
        return error


def _kinds(error: Exception) -> set[str]:
    """The names of an exception's classes: huggingface_hub asks through httpx, or httpx2 of the same names."""
    return {each.__name__ for each in type(error).__mro__ if each.__module__.startswith("httpx")}


def _reason(error: BaseException) -> str:
    """The system's word for it, which stands in the first error of a chain."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


def _waited_for(repository: _Repository) -> HubModel:
    """Fetch in the background: progress is shown when it takes longer than a moment, and the wait has an end."""
    patience, start, shown = repository.patience, time.monotonic(), False
    outcome: futures.Future[HubModel] = futures.Future()

    def run() -> None:
        try:
            outcome.set_result(repository.fetch())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    futures.wait([outcome], patience.quiet)
    while not outcome.done() and time.monotonic() - start < patience.whole:
        shown = _show_progress(repository, shown)
        futures.wait([outcome], 0.2)
    if shown and sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    if not outcome.done():
        raise _Unreachable(
            f"{repository.host} takes too long to answer for hf:{repository.name}", hint="try again later"
        )
    return outcome.result()


def _show_progress(repository: _Repository, shown: bool) -> bool:
    """One line on standard error: kept up to date on a terminal, written once elsewhere."""
    line = f"reading hf:{repository.name} from {repository.host}"
    if sys.stderr.isatty():
        count = f": {repository.files_done} of {repository.files_all} headers" if repository.files_all else ""
        sys.stderr.write(f"\r\x1b[K{line}{count} ...")
    elif not shown:
        sys.stderr.write(f"{line} ...\n")
    sys.stderr.flush()
    return True
