"""The Docker Engine, asked over its unix socket: who is this container, and what happens to containers.

The shell around `mesh.dockerwire`. Every question has a connection of its own and a time limit; the stream of events
has none but that for its beginning, as nothing may happen for days. Whatever goes wrong is one `DockerError`, so that a
Docker that is absent, hangs, dies or speaks in tongues is one case for whoever asks. Knows nothing of attachments.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

from gossip.errors import ProtocolError
from mesh import dockerwire
from mesh.dockerwire import Container, Events, Response

T = TypeVar("T")

ENDED_MAX = 1000

ANSWER_TIMEOUT_S = 5.0
"""A busy machine needs seconds for what is otherwise a few milliseconds."""
_READ_BYTES = 64 * 1024


class DockerError(Exception):
    """Docker cannot be asked, or not understood: one line that names its socket."""


class NoSuchContainer(DockerError):
    """Docker says that it has no such container."""


class Docker:
    """One engine."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path

    async def inspect(self, reference: str) -> Container:
        """By name, id, or a beginning of an id that only one has. Raises `DockerError`, `NoSuchContainer`."""
        return await self._told(dockerwire.inspect_path(reference), dockerwire.container_untrusted)

    async def networks(self) -> frozenset[str]:
        """The ids of those that are ours. Raises `DockerError`."""
        return await self._told(dockerwire.networks_path("weft"), dockerwire.ids_untrusted)

    async def members(self, network: str) -> dict[str, tuple[str, str]]:
        """By endpoint: the container's id and its name. Raises `DockerError`, `NoSuchContainer` for no such network."""
        return await self._told(dockerwire.network_path(network), dockerwire.members_untrusted)

    async def stranded(self) -> list[str]:
        """Containers that Docker was to keep running and could not start, as our plugin was not there. Raises
        `DockerError`."""
        ended = await self._told(dockerwire.ended_path(), dockerwire.ids_untrusted)
        found = []
        for container in sorted(ended)[:ENDED_MAX]:
            with contextlib.suppress(NoSuchContainer):
                if await self._told(dockerwire.inspect_path(container), dockerwire.is_stranded_untrusted):
                    found.append(container)
        return found

    async def start(self, container: str) -> None:
        """Raises `DockerError`."""
        async with self._asked(dockerwire.start_path(container), "POST") as (response, _, _):
            if response.status not in (204, 304):
                raise self._refused(response, None)

    async def aliases(self, container: str, endpoint: str) -> tuple[str, ...]:
        """What else it is called on the network that it is on by this endpoint. Raises `DockerError`."""
        parse = partial(dockerwire.aliases_untrusted, endpoint=endpoint)
        return await self._told(dockerwire.inspect_path(container), parse)

    async def _told(self, path: str, parse: Callable[[bytes], T]) -> T:
        async with self._asked(path) as (response, reader, body):
            async with self._in_time():
                while not response.ended:
                    body += await self._more(response, reader)
                    if len(body) > dockerwire.BODY_MAX_BYTES:
                        raise ProtocolError("docker-too-long", "the answer does not end")
            message = dockerwire.message_untrusted(bytes(body)) if response.status != 200 else None
            if response.status == 404 and message is not None:
                raise NoSuchContainer(message)
            if response.status != 200:
                raise self._refused(response, message)
            return parse(bytes(body))

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[frozenset[str]]]:
        """Ids of containers that started, ended or were removed, those together that came together. What happens from
        the beginning of the block on is told. Raises `DockerError`, also when the stream ends."""
        async with self._asked(dockerwire.events_path()) as (response, reader, body):
            if response.status != 200:
                raise self._refused(response, None)
            yield self._stream(response, reader, body)

    async def _stream(
        self, response: Response, reader: asyncio.StreamReader, body: bytearray
    ) -> AsyncIterator[frozenset[str]]:
        events = Events()
        data = bytes(body)
        while True:
            if ids := events.feed_untrusted(data):
                yield ids
            if response.ended:
                raise DockerError(f"the Docker Engine at {self.socket_path} has ended its stream of events")
            data = await self._more(response, reader)

    @contextlib.asynccontextmanager
    async def _asked(
        self, path: str, method: str = "GET"
    ) -> AsyncIterator[tuple[Response, asyncio.StreamReader, bytearray]]:
        """A question that was sent, and its answer as far as it has come: at least the head."""
        writer: asyncio.StreamWriter | None = None
        response, body = Response(), bytearray()
        try:
            async with self._in_time():
                reader, writer = await asyncio.open_unix_connection(self.socket_path, limit=_READ_BYTES)
                writer.write(dockerwire.request(path, method))
                await writer.drain()
                while response.status is None:
                    body += await self._more(response, reader)
            yield response, reader, body
        except OSError as error:
            raise DockerError(f"no Docker Engine answers at {self.socket_path} ({error.strerror or error})") from None
        except ProtocolError as error:
            raise DockerError(f"what answers at {self.socket_path} does not speak as Docker does: {error}") from None
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _more(self, response: Response, reader: asyncio.StreamReader) -> bytes:
        data = await reader.read(_READ_BYTES)
        if not data:
            response.finish_untrusted()
        return response.feed_untrusted(data)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                yield
        except TimeoutError:
            slow = f"the Docker Engine at {self.socket_path} did not answer within {ANSWER_TIMEOUT_S:g} s"
            raise DockerError(slow) from None

    def _refused(self, response: Response, message: str | None) -> DockerError:
        said = f": {message}" if message else ""
        return DockerError(f"the Docker Engine at {self.socket_path} refuses to answer (HTTP {response.status}){said}")
