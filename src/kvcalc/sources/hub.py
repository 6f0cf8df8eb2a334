"""Models on the Hugging Face Hub: config.json and the safetensors headers, never a weight.

The extra ``hub`` brings huggingface_hub, which knows the endpoint, the token and the local cache (HF_ENDPOINT,
HF_TOKEN, HF_HOME, HF_HUB_OFFLINE); the requests are made here, because every answer must be bounded in bytes and in
time, and the token must reach no other host.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote as quote_url
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError, KVCalcError, NetworkError, quote
from kvcalc.sources.checkpoint import LARGEST_CONFIG, SIDECAR, parse_config
from kvcalc.sources.files import read_bytes
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
_MOST_REDIRECTS = 5
_REQUESTS_AT_ONCE = 8
_REFERENCE = re.compile(r"hf:([\w.-]{1,96}(?:/[\w.-]{1,96})?)(?:#([\w./-]{1,200}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_RESOLVE = re.compile(r"/([\w.-]+(?:/[\w.-]+)?)/resolve/", re.ASCII)


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds: before progress is shown, for one answer, and for everything."""

    quiet: float = 1.0
    answer: float = 10.0
    whole: float = 120.0


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
    from kvcalc.sources.config import read_config  # the fetch may refuse: its rules are not needed then

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
    match = _REFERENCE.fullmatch(reference)
    if match is None or ".." in reference:
        raise InputError(
            f"{quote(reference)} names no model on the Hub", hint="write hf:org/name, or hf:org/name#revision"
        )
    name, revision = match[1], match[2] or "main"
    try:
        from huggingface_hub import constants
    except ImportError:
        raise NetworkError(
            "reading the Hub needs the package huggingface_hub", hint="pip install 'kvcalc[hub]'"
        ) from None
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
    repository = _Repository(name, revision, _Connection(constants.ENDPOINT, _headers(), patience or Patience()))
    try:
        return _waited_for(repository)
    except _Unreachable as error:
        if cached is None:
            raise NetworkError(error.message, hint=error.hint) from None
        note = f"{error.message}: the answer is that of the local cache"
        return HubModel(cached.name, cached.config, cached.weights, cached.source, (*cached.notes, note))


class _Unreachable(NetworkError):
    """Nothing answered: what is in the local cache is then better than nothing."""


def _headers() -> dict[str, str]:
    """User agent and token, as huggingface_hub finds it; the token is checked before anything could print it."""
    from huggingface_hub import constants, get_token

    from kvcalc import __version__

    headers = {"User-Agent": f"kvcalc/{__version__}"}
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
    table = parse_config(read_bytes(Path(config), LARGEST_CONFIG), config)
    sidecar = folder / SIDECAR
    if sidecar.is_file():
        table = {**table, "hf_quant_config": parse_config(read_bytes(sidecar, LARGEST_CONFIG), str(sidecar))}
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


class _Redirects(HTTPRedirectHandler):
    """Follows the Hub to its storage, without the token; a model that was renamed is said, not followed."""

    max_redirections = _MOST_REDIRECTS

    def __init__(self, name: str) -> None:
        self.name = name

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        same_host = (old.scheme, old.netloc) == (new.scheme, new.netloc)
        moved = _RESOLVE.match(unquote(new.path))
        fp.close()  # its body, which may have no end, is of no use
        if same_host and moved and moved[1] != self.name:
            hint = f"write hf:{moved[1]}"
            raise NetworkError(f"hf:{self.name} has been renamed to {quote(moved[1])}", hint=hint)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme != "https"):
            raise NetworkError(f"the Hub sends hf:{self.name} to an address that is not safe")
        redirected = super().redirect_request(req, fp, code, msg, headers, newurl)
        if redirected is not None and not same_host:
            redirected.remove_header("Authorization")
        return redirected


@dataclass
class _Connection:
    """The way to one endpoint: bounded in time and in bytes, for all requests together."""

    endpoint: str
    headers: dict[str, str] = field(repr=False)
    patience: Patience
    bytes_left: int = _MOST_BYTES
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.until = time.monotonic() + self.patience.whole
        self.host = urlsplit(self.endpoint).netloc.rpartition("@")[2]

    def read(self, name: str, url: str, most: int, span: tuple[int, int] | None, opener: OpenerDirector) -> _Answer:
        """At most ``most`` bytes of a file; with a ``span`` those from its first to its last byte.

        Raises:
            NetworkError: refused, slow, cut off, or longer than ``most``.
        """
        request = Request(url, headers=self.headers)  # noqa: S310 - the endpoint is the user's own, redirects are checked
        if span is not None:
            request.add_header("Range", f"bytes={span[0]}-{span[1]}")
        try:
            with opener.open(request, timeout=self.patience.answer) as response:
                length = response.headers.get("Content-Length", "")
                promised = int(length) if re.fullmatch(r"\d{1,18}", length) else None
                skipped = 0
                wanted = promised
                whole = promised
                if span is not None:
                    wanted = span[1] - span[0] + 1
                    ranged = re.fullmatch(
                        r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.headers.get("Content-Range", "")
                    )
                    if response.status == 206 and ranged is not None and int(ranged[1]) == span[0]:
                        whole = int(ranged[2])
                    elif response.status == 200:  # a server without ranges sends the file from its beginning
                        skipped = span[0]
                    else:
                        raise NetworkError(f"{self.host} answers another part of a file of hf:{name} than it was asked")
                    if whole is not None:
                        wanted = min(wanted, max(0, whole - span[0]))
                if (wanted or 0) + skipped > most:
                    raise NetworkError(f"a file of hf:{name} is larger than the {most:,} bytes that it may have")
                data = self._body(name, response, skipped + wanted if wanted is not None else None, most)
                return _Answer(data[skipped:], whole, response.headers.get("X-Repo-Commit"))
        except HTTPError as error:
            error.close()
            raise self._refused(name, error.code, error.headers, "Authorization" in self.headers) from None
        except (TimeoutError, HTTPException, OSError, ValueError) as error:
            raise self._failed(name, error) from None

    def _body(self, name: str, response: Any, wanted: int | None, most: int) -> bytes:
        pieces: list[bytes] = []
        have = 0
        while wanted is None or have < wanted:
            if time.monotonic() > self.until:
                raise TimeoutError
            piece = response.read1(2**16 if wanted is None else min(2**16, wanted - have))
            if not piece:
                break
            have += len(piece)
            pieces.append(piece)
            with self._lock:
                self.bytes_left -= len(piece)
            if have > most or self.bytes_left < 0:
                raise NetworkError(f"the files of hf:{name} are larger than they may be", hint="is the endpoint right?")
        if wanted is not None and have < wanted:
            raise NetworkError(
                f"the answer for hf:{name} was cut off after {have:,} of {wanted:,} bytes", hint="try again"
            )
        return b"".join(pieces)

    def _refused(self, name: str, code: int, headers: Any, with_token: bool) -> KVCalcError:
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

    def _failed(self, name: str, error: Exception) -> KVCalcError:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):
            return _Unreachable(f"{self.host} takes too long to answer for hf:{name}", hint="try again later")
        if isinstance(error, HTTPException | ValueError):
            return NetworkError(f"{quote(self.host)} does not answer as the Hub does", hint="is HF_ENDPOINT right?")
        reason = (getattr(cause, "strerror", None) or type(cause).__name__).lower()
        return _Unreachable(
            f"no connection to {quote(self.host)}: {quote(reason)[1:-1]}",
            hint="check the network; the local cache is read with HF_HUB_OFFLINE=1",
        )


class _NoSuchFile(NetworkError):
    """The repository has no file of that name, which may be quite right."""


class _Repository:
    """One model at one revision; the first answer pins the commit for those that follow."""

    def __init__(self, name: str, revision: str, connection: _Connection) -> None:
        self.name, self.revision, self.connection = name, revision, connection
        self.asked = revision
        self.files_done, self.files_all = 0, 0

    def fetch(self) -> HubModel:
        """config.json, the index where there is one, and every header."""
        try:
            config = self._read(_CONFIG, LARGEST_CONFIG)
        except _NoSuchFile as error:
            hint = f"a GGUF file can be downloaded and named: see {self.connection.host}/{self.name}/tree/{self.asked}"
            raise NetworkError(f"{error.message}: {_CONFIG}", hint=hint) from None
        if config.commit is not None and _COMMIT.fullmatch(config.commit):
            self.revision = config.commit
        source = f"hf:{self.name}#{self.revision}"
        table = parse_config(config.data, f"{_CONFIG} of {source}")
        weights = self._weights()
        if weights is not None and weights.elements is None and "quantization_config" not in table:
            with suppress(_NoSuchFile):
                sidecar = self._read(SIDECAR, LARGEST_CONFIG)
                table = {**table, "hf_quant_config": parse_config(sidecar.data, f"{SIDECAR} of {source}")}
        note = f"hf:{self.name} has no safetensors file: the weights are computed from its {_CONFIG}"
        return HubModel(self.name, table, weights, source, () if weights else (note,))

    def _weights(self) -> StoredWeights | None:
        try:
            index = self._read(INDEX_NAME, LARGEST_INDEX)
        except _NoSuchFile:
            self.files_all = 1
            try:
                return add_up([self._header(_SINGLE_FILE)])
            except _NoSuchFile:
                return None
        placed = parse_index(index.data, f"{INDEX_NAME} of hf:{self.name}")
        self.files_all = len(placed)

        def listed(name: str) -> dict[str, StoredTensor]:
            return listed_tensors(self._header(name), placed[name], f"{name} of hf:{self.name}")

        return add_up(_at_once(listed, list(placed)))

    def _header(self, file: str) -> dict[str, StoredTensor]:
        """The tensors of one file: one ranged read, and a second one where the header is long."""
        location = f"{file} of hf:{self.name}"
        first = self._read(file, _FIRST_BYTES, (0, _FIRST_BYTES - 1))
        if first.whole_bytes is None:
            raise NetworkError(f"{self.connection.host} does not say how long {quote(file)} is")
        length = header_length(first.data, first.whole_bytes, location)
        text = first.data[8 : 8 + length]
        if len(text) < length:
            end = 8 + length
            text += self._read(file, LARGEST_HEADER + 8, (len(first.data), end - 1)).data
        tensors = parse_header(text, first.whole_bytes - 8 - length, location)
        self.files_done += 1
        return tensors

    def _read(self, file: str, most: int, span: tuple[int, int] | None = None) -> _Answer:
        endpoint = self.connection.endpoint.rstrip("/")
        url = f"{endpoint}/{self.name}/resolve/{quote_url(self.revision, safe='')}/{quote_url(file)}"
        return self.connection.read(self.name, url, most, span, build_opener(_Redirects(self.name)))


def _at_once(work: Callable[[str], dict[str, StoredTensor]], names: list[str]) -> Iterator[dict[str, StoredTensor]]:
    """``work`` on every name, several at a time, in their order; the first failure ends it.

    The threads are daemons: an interrupted program does not wait for a slow server.
    """
    results: dict[str, dict[str, StoredTensor]] = {}
    failures: list[BaseException] = []
    waiting = iter(names)
    lock = threading.Lock()

    def run() -> None:
        while not failures:
            with lock:
                name = next(waiting, None)
            if name is None:
                return
            try:
                results[name] = work(name)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(_REQUESTS_AT_ONCE, len(names)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return (results[name] for name in names)


def _waited_for(repository: _Repository) -> HubModel:
    """Fetch in the background: progress is shown when it takes longer than a moment, and the wait has an end."""
    patience = repository.connection.patience
    outcome: list[HubModel | BaseException] = []

    def run() -> None:
        try:
            outcome.append(repository.fetch())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    start = time.monotonic()
    thread.start()
    thread.join(patience.quiet)
    shown = False
    while thread.is_alive() and time.monotonic() - start < patience.whole:
        shown = _show_progress(repository, shown)
        thread.join(0.2)
    if shown and sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    if not outcome:
        raise _Unreachable(
            f"{repository.connection.host} takes too long to answer for hf:{repository.name}", hint="try again later"
        )
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _show_progress(repository: _Repository, shown: bool) -> bool:
    """One line on standard error: kept up to date on a terminal, written once elsewhere."""
    line = f"reading hf:{repository.name} from {repository.connection.host}"
    if sys.stderr.isatty():
        count = f": {repository.files_done} of {repository.files_all} headers" if repository.files_all else ""
        sys.stderr.write(f"\r\x1b[K{line}{count} ...")
    elif not shown:
        sys.stderr.write(f"{line} ...\n")
    sys.stderr.flush()
    return True
