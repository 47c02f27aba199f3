"""What a call's fields say, or the refusal that says which of them is wrong. Pure."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from mesh.endpoints import Address, Interface
from mesh.requests import ApiError

Fields = dict[str, Any]


def bad_request(text: str) -> ApiError:
    return ApiError("bad-request", text)


def text_of(fields: Fields, key: str) -> str:
    value = fields.get(key) or ""
    if not isinstance(value, str) or len(value) > 256:
        raise bad_request(f"{key} is not a text of at most 256 characters")
    return value


def id_of(fields: Fields, key: str) -> str:
    value = text_of(fields, key)
    if not value or not value.isalnum():
        raise bad_request(f"{key} is not an id")
    return value


def check_network(text: str) -> None:
    try:
        ip_network(text)
    except ValueError:
        raise bad_request(f"{text!r} is not a subnet") from None


def address_of(text: str) -> Address:
    try:
        return ip_address(text.partition("/")[0])
    except ValueError:
        raise bad_request(f"{text!r} is not an address") from None


def interface_of(text: Any) -> Interface:
    try:
        return ip_interface(text)
    except ValueError:
        raise bad_request(f"{text!r} is not an address with its length") from None
