"""Sequence mixers by name: the gates and the low-rank pair that each gives to ``state_scan``.

    S_t = (diag(e^{g_t}) + b_t a_t^T) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t

    mixer             g                       a         b            k written   scale
    linear_attention                                                 phi(k)      1
    retention         ln gamma, one a head                           k           K^-1/2
    lightning         -slope, one a head                             k           1
    ssd               dt A, one a head                               B           1
    gla               given, one a key                               k           K^-1/2
    delta_rule                                k         -beta k      beta k      K^-1/2
    gated_delta_rule  given, one a head       e^g k     -beta k      beta k      K^-1/2
    kda               given, one a key        e^g k     -beta k      beta k      K^-1/2
    rwkv7             given, one a key        -kappa    kappa eta    k           1

Shapes are those of ``state_scan``: q, k [B, T, H, K] and v [B, T, H, V] of one dtype, the gates natural
logarithms, the state [N, H, K, V] in float32 (float64 for float64 input). All return its
``StateScan(output, state)``, differentiate to learned gates, rates and decays, and raise TypeError or
ValueError naming the argument. What the table multiplies is rounded to the dtype of q before the scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from worldsim_kernels.arguments import expect, finite, number, same_dtype
from worldsim_kernels.scan import StateScan, state_dtype, state_scan

FeatureMap = Callable[[Tensor], Tensor]
FEATURE_MAPS: dict[str, FeatureMap] = {"elu": lambda x: F.elu(x) + 1, "relu": torch.relu}


class ScanOptions(TypedDict, total=False):
    """Keywords of every mixer, which it passes on to ``state_scan``."""

    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    backend: str | None
    check: bool


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str | FeatureMap = "elu",
    causal: bool = True,
    normalise: bool = True,
    eps: float = 1e-10,
    scale: float | None = None,
    **options: Unpack[ScanOptions],
) -> StateScan:
    """Linear attention (Katharopoulos et al., 2020), a weighted mean with weights phi(q_i) . phi(k_j):

        o_i = phi(q_i)^T sum_j phi(k_j) v_j^T / (phi(q_i)^T sum_j phi(k_j) + eps)

    The sums run over j <= i when ``causal``, else over all tokens, as in the ReLU attention of SANA (Xie et
    al., 2024); they then are two matrix products, the same under every ``backend``.

    feature_map  phi: "elu" (elu(x) + 1), "relu", or a function of [B, T, H, K], whose result may be wider
    normalise    divide by the denominator. It is computed by one more column of v, of ones, so that the state
                 is [N, H, K, V + 1] and its last column sum_j phi(k_j)
    scale        factor of phi(q), None for 1; under ``normalise`` it cancels up to eps

    Half-precision input is lifted to float32 inside, as the denominator grows like T and would overflow.
    Raises ValueError for an unknown feature map, and for ``cu_seqlens`` without ``causal``.
    """
    _expect_tokens("linear_attention", q=q, k=k, v=v)
    low, dtype, phi = q.dtype, state_dtype(q), _feature_map(feature_map)
    q, k, v = phi(q.to(dtype)), phi(k.to(dtype)), v.to(dtype)
    if normalise:
        v = F.pad(v, (0, 1), value=1.0)
    if causal:
        output, state = state_scan(q, k, v, scale=scale, **options)
    else:
        output, state = _over_all(q, k, v, scale, **options)
    if normalise:
        output = output[..., :-1] / (output[..., -1:] + eps)
    return StateScan(output.to(low), state)


def _feature_map(named: str | FeatureMap) -> FeatureMap:
    if callable(named):
        return named
    if named not in FEATURE_MAPS:
        raise ValueError(
            f"linear_attention: feature_map is {named!r}; expected {', '.join(FEATURE_MAPS)} or a function"
        )
    return FEATURE_MAPS[named]


def _over_all(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    kernel = "linear_attention"
    if cu_seqlens is not None:
        raise ValueError(f"{kernel}: cu_seqlens is given; expected None when causal is False")
    if check:
        for name, tensor in (("q", q), ("k", k), ("v", v), ("initial_state", initial_state)):
            if tensor is not None:
                finite(kernel, name, tensor)
    # Autocast would round the sums to half precision.
    with torch.autocast(q.device.type, enabled=False):
        state = torch.einsum("bthk,bthv->bhkv", k, v)
        if initial_state is not None:
            axes = tuple(zip("NHKV", state.shape))
            expect(kernel, "initial_state", initial_state, axes, like=q)
            state = state + initial_state
        output = torch.einsum("bthk,bhkv->bthv", q, state)
    return output if scale is None else output * number(kernel, "scale", scale), state


def retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    **options: Unpack[ScanOptions],
) -> StateScan:
    """S_t = gamma S_{t-1} + k_t v_t^T, o_t = K^-1/2 S_t^T q_t: retention (Sun et al., 2023).

    g      ln gamma, [H] or [B, T, H]; None for ``retention_gates(H)``
    scale  None for K^-1/2

    q and k are rotated by the caller (``xpos``); the decay of that rotation is gamma itself. The published
    block normalises the output of each head, so that its other normalisers would change nothing.
    """
    size = _expect_tokens("retention", q=q, k=k, v=v)
    if g is None:
        g = retention_gates(size["H"], dtype=state_dtype(q), device=q.device)
    _expect_gate("retention", g, q, "H", "BTH")
    return state_scan(q, k, v, g, scale=_scale(scale, q), **options)


def retention_gates(
    heads: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """ln gamma_h, gamma_h = 1 - 2^(-5 - h) for h = 0, 1, ... [heads]. A half-life is ln(1/2) / ln gamma_h."""
    return torch.log1p(-(2.0 ** -(5 + torch.arange(heads, dtype=dtype, device=device))))


def lightning(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None = None,
    scale: float | None = None,
    **options: Unpack[ScanOptions],
) -> StateScan:
    """S_t = e^{-s_h} S_{t-1} + k_t v_t^T, o_t = S_t^T q_t: lightning attention (Qin et al., 2024).

    slopes  s_h >= 0, [H]; None for ``lightning_slopes(H)``
    scale   None for 1
    """
    size = _expect_tokens("lightning", q=q, k=k, v=v)
    if slopes is None:
        slopes = lightning_slopes(size["H"], dtype=state_dtype(q), device=q.device)
    expect("lightning", "slopes", slopes, (("H", size["H"]),), like=q)
    return state_scan(q, k, v, -slopes, scale=scale, **options)


def lightning_slopes(
    heads: int,
    *,
    layer: int = 0,
    layers: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """s_h = 2^(-8 h / heads) for h = 1 ... heads. [heads]

    In a stack of several layers times 1 - layer / (layers - 1) + 1e-5 (MiniMax-01, 2025), so that the last
    layer remembers longest.
    """
    slopes = 2.0 ** (-8 / max(1, heads) * torch.arange(1, heads + 1, dtype=dtype, device=device))
    return slopes if layers == 1 else slopes * (1 - layer / (layers - 1) + 1e-5)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    **options: Unpack[ScanOptions],
) -> StateScan:
    """S_t = e^{dt_t A} S_{t-1} + dt_t B_t x_t^T, y_t = S_t^T C_t + D x_t: Mamba-2 (Dao and Gu, 2024).

    x     [B, T, H, P]: P is the width of a head, N that of the state, which is [., H, N, P]
    dt    [B, T, H] > 0, after its softplus; A [H] < 0; D [H] or None
    B, C  [B, T, G, N] in the dtype of x: head h uses group h // (H / G). With G = 1 they are not copied
    """
    expect("ssd", "x", x, (("B", None), ("T", None), ("H", None), ("P", None)))
    batch, length, heads, _ = x.shape
    tokens = (("B", batch), ("T", length))
    expect("ssd", "dt", dt, (*tokens, ("H", heads)), like=x)
    expect("ssd", "A", A, (("H", heads),), like=x)
    expect("ssd", "B", B, (*tokens, ("G", None), ("N", None)), like=x)
    groups, states = B.shape[2:]
    expect("ssd", "C", C, (*tokens, ("G", groups), ("N", states)), like=x)
    if groups < 1 or heads % groups:
        raise ValueError(f"ssd: B has G={groups} groups; expected a divisor of the H={heads} heads of x")
    if D is not None:
        expect("ssd", "D", D, (("H", heads),), like=x)
    for name, tensor in (("B", B), ("C", C)):
        same_dtype("ssd", name, tensor, x, "x")

    def each_head(shared: Tensor) -> Tensor:
        if groups == 1:
            return shared.expand(batch, length, heads, states)
        return shared.repeat_interleave(heads // groups, dim=2)

    dt = dt.to(state_dtype(x))
    entering = (dt[..., None] * x).to(x.dtype)
    output, state = state_scan(each_head(C), each_head(B), entering, dt * A, **options)
    return StateScan(output if D is None else (output + D[:, None] * x).to(x.dtype), state)


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    **options: Unpack[ScanOptions],
) -> StateScan:
    """S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T, o_t = K^-1/2 S_t^T q_t: GLA (Yang et al., 2024).

    g      [B, T, H, K]. With k = 1 - e^g this is HGRN2 (Qin et al., 2024)
    scale  None for K^-1/2
    """
    _expect_tokens("gla", q=q, k=k, v=v)
    _expect_gate("gla", g, q, "BTHK")
    return state_scan(q, k, v, g, scale=_scale(scale, q), **options)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    l2_normalise: bool = True,
    scale: float | None = None,
    **options: Unpack[ScanOptions],
) -> StateScan:
    """S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T: DeltaNet (Schlag et al., 2021).

    beta          [B, T, H] in [0, 1], or up to 2 for negative eigenvalues, with which the state can track
                  parity and permutations (Grazzi et al., 2024); looked at under ``check``. At 2 the
                  transition is a reflection only as far as the dtype of k holds its length
    l2_normalise  replace q and k by x / sqrt(|x|^2 + 1e-6), as the models of this family do since Yang et
                  al., 2024; a beta up to 2 is stable for |k| <= 1 only. False when they already are
    scale         None for K^-1/2, as in trained models of this family; the papers' equations have 1
    """
    return _delta_rule("delta_rule", q, k, v, None, beta, l2_normalise, scale, options)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    l2_normalise: bool = True,
    scale: float | None = None,
    **options: Unpack[ScanOptions],
) -> StateScan:
    """S_t = e^{g_t} (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T: Gated DeltaNet (Yang et al., 2025).

    g  [B, T, H]; the rest as in ``delta_rule``
    """
    return _delta_rule("gated_delta_rule", q, k, v, g, beta, l2_normalise, scale, options, gate="BTH")


def kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    l2_normalise: bool = True,
    scale: float | None = None,
    **options: Unpack[ScanOptions],
) -> StateScan:
    """S_t = (I - beta_t k_t k_t^T) diag(e^{g_t}) S_{t-1} + beta_t k_t v_t^T: Kimi delta attention (2025).

    g  [B, T, H, K]; the rest as in ``delta_rule``
    """
    return _delta_rule("kda", q, k, v, g, beta, l2_normalise, scale, options, gate="BTHK")


def _delta_rule(
    kernel: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    l2_normalise: bool,
    scale: float | None,
    options: ScanOptions,
    gate: str = "",
) -> StateScan:
    size = _expect_tokens(kernel, q=q, k=k, v=v)
    if gate:
        _expect_gate(kernel, g, q, gate)
    expect(kernel, "beta", beta, tuple((x, size[x]) for x in "BTH"), like=q)
    if options.get("check"):
        _expect_rates(kernel, "beta", beta)
    low, dtype = q.dtype, state_dtype(q)
    if l2_normalise:
        q, k = _unit(q.to(dtype)), _unit(k.to(dtype))
    written = (beta.to(dtype)[..., None] * k).to(low)
    read = k
    if g is not None:
        read = (g[..., None] if g.dim() == 3 else g).to(dtype).exp() * k
    factor = _scale(scale, q)
    return state_scan(q.to(low), written, v, g, read.to(low), -written, scale=factor, **options)


def rwkv7(
    r: Tensor,
    w_log: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    eta: Tensor,
    **options: Unpack[ScanOptions],
) -> StateScan:
    """The recurrence of RWKV-7 (Peng et al., 2025); ``rwkv7_block.RWKV7TimeMix`` is its whole block.

        S_t = (diag(w_t) - (eta_t * kappa_t) kappa_t^T) S_{t-1} + k_t v_t^T,    o_t = S_t^T r_t

    r, k   [B, T, H, K]: the key that is written need not lie along kappa
    w_log  ln w, [B, T, H, K]; in the model at least -e^{-1/2}
    kappa  [B, T, H, K] of unit length: the direction in which the state is removed
    eta    [B, T, H, K]: the in-context rate of each key in [0, 1], or up to 2 for negative eigenvalues
           (Grazzi et al., 2024); looked at under ``check``
    """
    size = _expect_tokens("rwkv7", r=r, k=k, v=v)
    axes = tuple((x, size[x]) for x in "BTHK")
    for name, tensor in (("w_log", w_log), ("kappa", kappa), ("eta", eta)):
        expect("rwkv7", name, tensor, axes, like=r)
    for name, tensor in (("kappa", kappa), ("eta", eta)):
        same_dtype("rwkv7", name, tensor, r, "r")
    if options.get("check"):
        _expect_rates("rwkv7", "eta", eta)
    return state_scan(r, k, v, w_log, -kappa, kappa * eta, **options)


def _unit(x: Tensor) -> Tensor:
    # The constant bounds the gradient where x is zero, as in padding.
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _scale(scale: float | None, q: Tensor) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def _expect_tokens(kernel: str, **named: Tensor) -> dict[str, int]:
    """Check a query, a key and a value under their names here; the sizes B, T, H, K of the first."""
    (first, q), (key, k), (value, v) = named.items()
    expect(kernel, first, q, (("B", None), ("T", None), ("H", None), ("K", None)))
    size = dict(zip("BTHK", q.shape))
    tokens = tuple((x, size[x]) for x in "BTH")
    expect(kernel, key, k, (*tokens, ("K", size["K"])), like=q)
    expect(kernel, value, v, (*tokens, ("V", None)), like=q)
    for name, tensor in ((key, k), (value, v)):
        same_dtype(kernel, name, tensor, q, first)
    return size


def _expect_gate(kernel: str, g: Any, q: Tensor, *allowed: str) -> None:
    """Check g against the one of the ``allowed`` axes with as many letters, else against the last."""
    size = dict(zip("BTHK", q.shape))
    found = g.dim() if isinstance(g, Tensor) else 0
    axes = next((each for each in allowed if len(each) == found), allowed[-1])
    expect(kernel, "g", g, tuple((x, size[x]) for x in axes), like=q)


def _expect_rates(kernel: str, name: str, rates: Tensor) -> None:
    bad = ~((rates >= 0) & (rates <= 2))
    if bad.any():
        place = bad.nonzero()[0].tolist()
        raise ValueError(f"{kernel}: {name} is {rates[tuple(place)].item()} at {place}; expected 0 to 2")
