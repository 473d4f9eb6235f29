"""PURE: The IP addresses to which no process connects because somebody's resource says so.

Clouds serve the credentials of the machine at a link-local address.
"""

from __future__ import annotations

import ipaddress

# The metadata services of AWS and of Google Cloud over IPv6 are not at a link-local address.
_METADATA = ("fd00:ec2::/32", "fd20:ce::/32")
REFUSED_IPV4 = ("169.254.0.0/16",)
REFUSED_IPV6 = ("fe80::/10", *_METADATA)
_NETWORKS = tuple(ipaddress.ip_network(network) for network in (*REFUSED_IPV4, *REFUSED_IPV6))


def refused_address(text: str) -> bool:
    """Return whether an IP address is link-local, or that of a cloud's metadata service.

    Raises ValueError for what is no IP address.
    """
    ip = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in _NETWORKS)


def refused_host(host: str) -> bool:
    """Return whether the host of a URL is such an address. What a name leads to is not known."""
    try:
        return refused_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
