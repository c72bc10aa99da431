"""The torch backend is the same function: held to the specification and the CPU kernel, on CPU tensors."""

from __future__ import annotations

import numpy as np
import pytest
import tvl1_specification as specification

from pipeline.flow import TVL1, tvl1_clip

torch = pytest.importorskip("torch")

from pipeline.flow import batched  # noqa: E402 - torch may be absent

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _solve(frames: np.ndarray, params: TVL1, device: str) -> np.ndarray:
    return batched.solve_pairs(frames, params, device)


def _clip(count: int, height: int = 48, width: int = 61) -> np.ndarray:
    """Textures that stand, creep and run, so that the pairs stop at different iterations."""
    noise = np.random.default_rng(3).normal(size=(height + 60, width + 60)).cumsum(0).cumsum(1)
    noise = 255 * (noise - noise.min()) / np.ptp(noise)
    at = [0, 0, 1, 2, 2, 3, 5][:count]
    return np.stack([noise[s : s + height, s : s + width] for s in at]).astype(np.uint8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("params", [TVL1(), TVL1(scales=2, median=1, warps=2)])
def test_it_gives_the_flow_of_the_cpu_kernel(device, params):
    frames = _clip(5)
    error = np.linalg.norm(_solve(frames, params, device) - tvl1_clip(frames, params), axis=-1)
    assert error.mean() <= 0.01
    assert np.median(error) <= 0.001


@pytest.mark.parametrize("device", DEVICES)
def test_a_pair_does_not_depend_on_its_batch(device, monkeypatch):
    frames = _clip(7)
    together = _solve(frames, TVL1(), device)
    alone = np.concatenate([_solve(frames[i : i + 2], TVL1(), device) for i in range(6)])
    assert together == pytest.approx(alone, abs=1e-4)
    monkeypatch.setattr(batched, "BATCH_PIXELS", 2 * frames[0].size)
    assert _solve(frames, TVL1(), device) == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_identical_frames_give_zero_and_odd_sizes_have_flow(device):
    for shape in ((1, 1), (3, 2), (17, 33)):
        a, b = np.random.default_rng(1).integers(0, 256, (2, *shape)).astype(np.uint8)
        flow = _solve(np.stack([a, a, b]), TVL1(), device)
        assert not flow[0].any()
        assert np.isfinite(flow).all()


@pytest.mark.parametrize("device", DEVICES)
def test_its_steps_follow_the_specification(device):
    rng = np.random.default_rng(4)
    u, g = rng.normal(size=(2, 2, 20, 31))
    second = rng.integers(0, 256, (20, 31)).astype(float)
    tensor = lambda a: torch.tensor(a, dtype=torch.float32, device=device)[None]  # noqa: E731
    planes = np.stack([second, *specification.gradient(second)])
    warped = batched.sample_bicubic(tensor(planes), tensor(u * 3))[0].cpu().numpy()
    rows, columns = np.mgrid[:20, :31]
    for plane, found in zip(planes, warped, strict=True):
        wanted = specification.sample_bicubic(plane, columns + 3 * u[0], rows + 3 * u[1])
        assert found == pytest.approx(wanted, abs=0.05)
    assert np.array_equal(
        batched.median(tensor(u))[0, 0].cpu().numpy(), specification.median(u[0].astype(np.float32))
    )
    params, size = TVL1(), np.sqrt((g * g).sum(0))
    rho = rng.normal(size=(20, 31))
    p = rng.normal(size=(2, 2, 20, 31)) * 0.3
    p[:, 0, :, -1] = p[:, 1, -1, :] = 0
    found_u, found_q, change = batched.iteration(
        tensor(u), tensor(p * params.theta / params.tau), tensor(g / size), tensor(rho / size),
        tensor(params.lambda_ * params.theta * size), params,
    )  # fmt: skip
    wanted_u, wanted_p, wanted_change = specification.iteration(u, p, g, rho, params)
    assert found_u[0].cpu().numpy() == pytest.approx(wanted_u, abs=1e-5)
    assert found_q[0].cpu().numpy() * params.tau / params.theta == pytest.approx(wanted_p, abs=1e-5)
    assert float(change) == pytest.approx(wanted_change, rel=1e-4)


def test_a_device_that_is_not_there_gets_one_sentence():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="flow cannot be computed on the device 'cuda'"):
        tvl1_clip(_clip(2), device="cuda")
