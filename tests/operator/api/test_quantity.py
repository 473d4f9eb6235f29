"""A Kubernetes quantity is a number of bytes, or is refused."""

from __future__ import annotations

import pytest

from disagg_operator.api.quantity import quantity_bytes


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        ("512Mi", 1 << 29),
        ("1Gi", 1 << 30),
        ("1.5Gi", 3 << 29),
        ("2G", 2 * 10**9),
        (1024, 1024),
        ("10k", 10_000),
        ("0.5Ki", 512),
    ],
)
def test_a_quantity_in_bytes(quantity: str | int, expected: int) -> None:
    assert quantity_bytes(quantity) == expected


@pytest.mark.parametrize("quantity", ["", "Gi", "1Zi", "-", "1 000", "NaN", "1e3", "12m"])
def test_what_is_no_quantity_of_bytes_is_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="not a quantity of bytes"):
        quantity_bytes(quantity)
