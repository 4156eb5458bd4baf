"""Where a request may go: to public addresses only, whatever a name claims and however often it changes its mind.

A name is looked up once for a connection, every address found is checked, and the connection goes to a checked address
itself. So nothing happens between check and connection, and spellings such as `http://2130706433/` hide nothing.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpcore
import httpx

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]

_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")
_SPECIAL = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")))
"""Blocks for protocols and documentation, which the standard library takes for public, depending on its version."""
_NO_SUCH_NAME = {getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)}
_HOST = re.compile(r"[a-z0-9_-][a-z0-9._-]*|[0-9a-f:.]+", re.IGNORECASE)
_PORTS = range(1, 2**16)
_TRIED = 3
"""Addresses of one host that are tried in turn."""


class NotPublic(Exception):
    """A host that leads into a private, loopback, link-local or reserved network; ``address`` is the one found."""

    def __init__(self, host: str, address: str) -> None:
        super().__init__(f"{host} leads to {address}, which is not public")
        self.host = host
        self.address = address


class NoSuchHost(Exception):
    """A host name that does not exist, as far as is known here."""


class NoAddress(ValueError):
    """Text that is no address of the web."""


def checked_url(text: str) -> httpx.URL:
    """An http or https address without credentials and fragment; NoAddress for anything else."""
    try:
        url = httpx.URL(text.strip())
        if url.scheme not in ("http", "https"):
            raise NoAddress("it starts with neither http:// nor https://")
        if not _HOST.fullmatch(url.raw_host.decode("ascii")):
            raise NoAddress("its host cannot exist")
        if url.port is not None and url.port not in _PORTS:
            raise NoAddress("its port cannot exist")
        return url.copy_with(host=url.host.rstrip("."), userinfo=b"", fragment=None)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise NoAddress("it cannot be read as an address") from error


def is_public(address: Address) -> bool:
    """Whether an address is reachable for everybody; one that wraps an IPv4 address is what that address is."""
    if isinstance(address, IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in block for block in _SPECIAL)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address to which this one is carried on: mapped, 6to4 or NAT64."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host as the system knows them; NoSuchHost, or ConnectError where that cannot be told."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label of more than 63 letters
        raise NoSuchHost(host) from error
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            raise NoSuchHost(host) from error
        raise httpcore.ConnectError(f"the name {host} cannot be looked up") from error
    return list(dict.fromkeys(str(info[4][0]) for info in found))


class Guard(httpcore.AsyncNetworkBackend):
    """Opens connections to public addresses only; to any with ``allow_private``."""

    def __init__(
        self,
        allow_private: bool = False,
        resolver: Resolver | None = None,
        inner: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._resolver = resolver or resolve
        self._inner = inner or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = (await self._permitted(host, port))[:_TRIED]
                share = timeout and timeout / len(addresses)
                for address in addresses[:-1]:
                    try:
                        return await self._inner.connect_tcp(address, port, share, local_address, socket_options)
                    except (httpcore.ConnectError, httpcore.ConnectTimeout):
                        continue
                return await self._inner.connect_tcp(addresses[-1], port, share, local_address, socket_options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("no connection in time") from error

    async def _permitted(self, host: str, port: int) -> list[str]:
        """The host's addresses, when each of them may be asked; NotPublic otherwise."""
        addresses = await self._resolver(host, port)
        if not addresses:
            raise NoSuchHost(host)
        for address in () if self._allow_private else addresses:
            if not is_public(ip_address(address)):
                raise NotPublic(host, address)
        return addresses

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def guarded_transport(allow_private: bool = False) -> httpx.AsyncHTTPTransport:
    """A transport whose connections a `Guard` opens; names of certificates are still those of the hosts.

    Proxies of the environment are not used: a proxy would look names up again, unchecked. Use it directly or in an
    `httpx.AsyncClient` that follows no redirects by itself. Raises NotPublic and NoSuchHost beside httpx's errors.
    """
    context = httpx.create_ssl_context()
    transport = httpx.AsyncHTTPTransport(verify=context)
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=context, max_connections=16, keepalive_expiry=5.0, network_backend=Guard(allow_private)
    )
    return transport
