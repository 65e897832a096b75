"""The operators that a user's program may call: those of networks. None of them opens a file or takes code."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from pipeline.common.errors import StudyError
from pipeline.common.text import shortened

LARGEST = 1 << 63  # every size is smaller
LARGEST_EXPONENT = 64

ON_TENSORS = """
abs acos acosh add addcdiv addcmul addmm asin asinh atan atan2 atanh baddbmm bitwise_and bitwise_not bitwise_or
bitwise_xor bmm ceil clamp clamp_max clamp_min clip cos cosh div divide dot einsum eq erf erfc exp exp2 expm1 floor
floor_divide fmod frac ge greater greater_equal gt hypot inner isfinite isinf isnan le lerp less less_equal log log10
log1p log2 logaddexp logical_and logical_not logical_or logical_xor logit lt matmul maximum minimum mm mul multiply mv
nan_to_num ne neg negative not_equal outer pow reciprocal remainder round rsqrt rsub sgn sign sin sinh sqrt square sub
subtract tan tanh true_divide trunc where

celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid log_softmax mish prelu relu relu6
selu sigmoid silu softmax softplus softshrink threshold

all amax amin any argmax argmin argsort count_nonzero cumprod cumsum linalg_norm linalg_vector_norm logsumexp max mean
median min norm prod sort std std_mean sum topk var var_mean

alias broadcast_tensors broadcast_to cat chunk clone column_stack concat constant_pad_nd contiguous detach detach_copy
diag diag_embed diagonal expand expand_as flatten flip hstack index_select lift_fresh lift_fresh_copy masked_select
meshgrid moveaxis movedim narrow pad permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape
reshape_as roll rot90 select slice split split_with_sizes squeeze stack swapaxes swapdims t tensor_split tile
transpose tril triu unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as vstack

copy embedding fill gather index index_add index_fill index_put masked_fill one_hot scatter scatter_add zero sym_numel
sym_size

arange eye full full_like linspace new_full new_ones new_zeros ones ones_like scalar_tensor zeros zeros_like to
type_as _assert_async _assert_scalar _assert_tensor_metadata

adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d avg_pool1d avg_pool2d conv1d conv2d
conv_transpose1d conv_transpose2d im2col linear max_pool1d max_pool2d upsample_bicubic2d upsample_bilinear2d
upsample_nearest2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact2d

batch_norm cosine_similarity dropout feature_dropout group_norm instance_norm layer_norm pairwise_distance rms_norm
scaled_dot_product_attention

complex fft_fft fft_fft2 fft_ifft fft_ifft2 fft_irfft fft_irfft2 fft_rfft fft_rfft2 imag real view_as_complex
view_as_real
"""
"""As `torch.export.export` writes them. With `relu`, `relu_` is allowed, too."""

ATEN = frozenset(ON_TENSORS.split())

ON_SIZES: dict[str, Callable[..., Any]] = {
    "_operator.add": operator.add,
    "_operator.sub": operator.sub,
    "_operator.mul": operator.mul,
    "_operator.floordiv": operator.floordiv,
    "_operator.truediv": operator.truediv,
    "_operator.mod": operator.mod,
    "_operator.pow": operator.pow,
    "_operator.neg": operator.neg,
    "_operator.eq": operator.eq,
    "_operator.ne": operator.ne,
    "_operator.lt": operator.lt,
    "_operator.le": operator.le,
    "_operator.gt": operator.gt,
    "_operator.ge": operator.ge,
    "_operator.and_": operator.and_,
    "_operator.or_": operator.or_,
    "math.trunc": math.trunc,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_not": operator.not_,
    "torch.sym_ite": lambda condition, yes, no: yes if condition else no,
}


def function_of(target: str) -> Callable[..., Any]:
    """The operator of a name in a program. Raises StudyError if we do not allow it."""
    if target in ON_SIZES:
        return _bounded(ON_SIZES[target])
    packet_name, _, overload = target.rpartition(".")
    space, _, name = packet_name.rpartition(".")
    if space == "torch.ops.aten" and (name in ATEN or name.removesuffix("_") in ATEN):
        packet = getattr(torch.ops.aten, name)
        if overload in packet.overloads() and _is_on_tensors(getattr(packet, overload)._schema):
            return getattr(packet, overload)  # type: ignore[no-any-return]
    raise StudyError(f"the program calls {shortened(target)!r}, which is not among the operators that we allow")


def _is_on_tensors(schema: Any) -> bool:
    """Whether an operator takes or gives tensors, and takes none for its result.

    TorchScript has further operators of the same names, on text and lists.
    """
    return "Tensor" in str(schema) and not any(argument.is_out for argument in schema.arguments)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of numbers, as long as they and the result are sizes: a power tower would take for ever."""

    def call(*numbers: Any) -> Any:
        if all(isinstance(number, int | float) and -LARGEST <= number < LARGEST for number in numbers) and not (
            function is operator.pow and abs(numbers[1]) > LARGEST_EXPONENT
        ):
            result = function(*numbers)
            if -LARGEST <= result < LARGEST:
                return result
        raise StudyError("the program computes with sizes that no image has")

    return call
