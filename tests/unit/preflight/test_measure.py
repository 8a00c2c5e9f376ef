"""The product of matrices is exact, so that results of all machines can be compared bit for bit."""

import torch

from megatron_medx.preflight import measure

CPU = torch.device("cpu")


def test_the_product_is_exact_and_always_the_same(monkeypatch):
    monkeypatch.setitem(measure.MULTIPLY_S, "cpu", 0.02)
    first, second = (measure.multiply(CPU, lambda: False) for _ in range(2))
    assert first["checksum"] == second["checksum"] and first["num_odd"] == 0 and first["multiply_s"] > 0
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-128, 128, (512, 512), generator=generator, dtype=torch.int16) for _ in range(2))
    exact = left.double() @ right.double()
    assert measure.checksum(exact.float()) == first["checksum"]
    assert exact.abs().max() < 2**24


def test_products_of_the_gpus_size_are_exact_in_fp32_too():
    generator = torch.Generator().manual_seed(0)
    size = measure.MATRIX["cuda"]
    shapes = ((64, size), (size, 512))
    left, right = (torch.randint(-128, 128, shape, generator=generator, dtype=torch.int16) for shape in shapes)
    assert (left.double() @ right.double()).abs().max() < 2**22, "32,768 sums; 2^24 is 34 standard deviations away"


def test_products_go_on_while_the_driver_is_asked(monkeypatch):
    monkeypatch.setitem(measure.MULTIPLY_S, "cpu", 0.0)
    left = iter([True, True, True, False])
    measure.multiply(CPU, lambda: next(left))
    assert next(left, None) is None


def test_a_checksum_sees_one_bit_and_the_order():
    values = torch.arange(1000, dtype=torch.float32).view(10, 100)
    flipped = values.clone()
    flipped.view(torch.int32)[5, 50] ^= 1
    sums = {measure.checksum(one) for one in (values, flipped, values.flip(0))}
    assert len(sums) == 3
    assert measure.checksum(values.bfloat16()) != measure.checksum(flipped.bfloat16().flip(0))
