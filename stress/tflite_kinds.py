"""Every kind of defect of TFLite files (see `defects.toml`), and how it is planted."""

import defect_arrays as arrays
import numpy as np
import tflite_defects as lite
from ai_edge_litert import schema_py_generated as schema
from defect_arrays import OHWI
from planting import (
    Edit,
    Kind,
    first_two_swapped,
    in_bytes,
    in_preprocessing,
    moved_by_one,
    of_folder,
    one_lost,
    one_more,
    other_model,
    reversed_field,
    truncated,
)
from tflite_defects import (
    ACTIVATIONS,
    BLOCK,
    FLOAT,
    GRAPH,
    INPUT,
    INT8,
    INTEGERS,
    LABEL_FILE,
    LAST,
    ONE_BUT_LAST,
    OPS,
    OUTPUT,
    PROCESS,
    PROJECTION,
    STATS,
    STEM,
    TYPES,
    Change,
)

CONV, POOL, ADD, MEAN = OPS.CONV_2D, OPS.MAX_POOL_2D, OPS.ADD, OPS.MEAN
FC, SOFTMAX, PAD = OPS.FULLY_CONNECTED, OPS.SOFTMAX, OPS.PAD
VALID, SAME = schema.Padding.VALID, schema.Padding.SAME
_pads = np.array
# Of float32 files; the constants MUL and ADD before the first padding normalise.
_FLOAT: dict[str, Change] = {
    "pad_same_to_valid": lite.options(CONV, LAST, padding=VALID),
    "pad_valid_to_same": lite.same_of_strided,
    "pad_asymmetric": lite.constant(
        PAD, -1, 1, lambda a: _pads([[0, 0], [0, 2], [0, 2], [0, 0]], "i4")
    ),
    "pad_rows_columns": lite.constant(
        PAD, 0, 1, lambda a: _pads([[0, 0], [2, 4], [4, 2], [0, 0]], "i4")
    ),
    "pad_transposed": lite.constant(
        PAD, -1, 1, lambda a: _pads([[0, 0], [1, 1], [2, 0], [0, 0]], "i4")
    ),
    "pool_average_for_max": lite.averaged,
    "pool_window": lite.options(POOL, 0, filterHeight=2, filterWidth=2, padding=SAME),
    "pool_stride": lite.options(POOL, 0, strideH=1, strideW=1),
    "conv_stride_one_axis": lite.options(CONV, ONE_BUT_LAST, strideW=2),
    "conv_dilation": lite.options(CONV, LAST, dilationHFactor=2, dilationWFactor=2),
    "conv_dilation_one_axis": lite.options(CONV, LAST, dilationWFactor=2),
    "activation_dropped": lite.options(
        CONV, STEM, fusedActivationFunction=ACTIVATIONS.NONE
    ),
    "activation_dropped_after_add": lite.options(
        ADD, -1, fusedActivationFunction=ACTIVATIONS.NONE
    ),
    "activation_relu6": lite.options(
        CONV, ONE_BUT_LAST, fusedActivationFunction=ACTIVATIONS.RELU6
    ),
    "activation_added": lite.options(
        CONV, LAST, fusedActivationFunction=ACTIVATIONS.RELU
    ),
    "activation_on_projection": lite.options(
        CONV, PROJECTION, fusedActivationFunction=ACTIVATIONS.RELU
    ),
    "activation_relu_n1_to_1": lite.options(
        CONV, BLOCK, fusedActivationFunction=ACTIVATIONS.RELU_N1_TO_1
    ),
    "activation_tanh": lite.options(FC, -1, fusedActivationFunction=ACTIVATIONS.RELU),
    "add_becomes_sub": lite.kind_of(
        ADD, -1, OPS.SUB, schema.SubOptionsT, schema.BuiltinOptions.SubOptions
    ),
    "add_becomes_mul": lite.kind_of(
        ADD, -1, OPS.MUL, schema.MulOptionsT, schema.BuiltinOptions.MulOptions
    ),
    "add_becomes_maximum": lite.kind_of(ADD, -1, OPS.MAXIMUM),
    "add_same_operand": lite.argument_of(ADD, -1, 1, lite.operand(-1, 0)),
    "shortcut_from_earlier_block": lite.argument_of(ADD, 2, 1, lite.operand(1, 1)),
    "block_skipped": lite.skipped(ADD, -1, 1),
    "shortcut_lost": lite.skipped(ADD, -1, 0),
    "operators_swapped": lite.exchanged(LAST, ONE_BUT_LAST),
    "softmax_missing": lite.skipped(SOFTMAX, -1),
    "softmax_twice": lite.doubled(SOFTMAX, -1),
    "softmax_beta": lite.options(SOFTMAX, -1, beta=0.5),
    "softmax_to_logistic": lite.kind_of(SOFTMAX, -1, OPS.LOGISTIC),
    "softmax_to_log_softmax": lite.kind_of(SOFTMAX, -1, OPS.LOG_SOFTMAX),
    "mean_axes": lite.constant(MEAN, -1, 1, lambda a: np.array([1, 1], "i4")),
    "mean_to_max": lite.kind_of(
        MEAN,
        -1,
        OPS.REDUCE_MAX,
        schema.ReducerOptionsT,
        schema.BuiltinOptions.ReducerOptions,
    ),
    "mean_to_sum": lite.kind_of(
        MEAN, -1, OPS.SUM, schema.ReducerOptionsT, schema.BuiltinOptions.ReducerOptions
    ),
    "weights_transposed_hw": lite.kernel(LAST, arrays.transposed(OHWI)),
    "weights_flipped": lite.kernel(LAST, arrays.flipped(OHWI)),
    "weights_oihw_bytes": lite.kernel(LAST, arrays.relaid(0, 3, 1, 2)),
    "weights_input_reversed": lite.kernel(STEM, arrays.reversed_along(3)),
    "weights_output_permuted": lite.kernel(LAST, arrays.rotated(0)),
    "weights_input_rotated": lite.kernel(LAST, arrays.rotated(3)),
    "weights_channel_zeroed": lite.kernel(LAST, arrays.one_channel_zeroed(0)),
    "weights_channel_duplicated": lite.kernel(LAST, arrays.duplicated(0)),
    "weights_bit_flipped": lite.kernel(LAST, arrays.flipped_bit),
    "weights_of_few_bits": lite.all_weights(arrays.coarse(2**11)),
    "dense_transposed_bytes": lite.classifier(arrays.relaid(1, 0)),
    "dense_rows_swapped": lite.classifier(arrays.swapped(0)),
    "dense_scaled": lite.classifier(arrays.scaled(1.01)),
    "weights_zeroed": lite.kernel(LAST, np.zeros_like),
    "weights_negated": lite.kernel(LAST, np.negative),
    "weights_scaled": lite.kernel(LAST, arrays.scaled(1.05)),
    "weights_one_value": lite.classifier(arrays.one_sign),
    "weights_float16_rounded": lite.all_weights(arrays.float16),
    "weights_bfloat16_rounded": lite.all_weights(arrays.bfloat16),
    "weights_byteswapped": lite.kernel(LAST, arrays.byteswapped),
    "weights_truncated": lite.shortened,
    "weights_shared": lite.shared(LAST, ONE_BUT_LAST),
    "weights_nan": lite.kernel(LAST, arrays.put(np.nan)),
    "weights_huge": lite.kernel(LAST, arrays.put(1e30)),
    "bias_zeroed": lite.bias(LAST, np.zeros_like),
    "bias_shifted": lite.bias(LAST, arrays.rotated(0)),
    "bias_rounded": lite.bias(STEM, arrays.float16),
    "bias_classifier_missing": lite.permuted_bias_only,
    "bias_classifier_rotated": lite.classifier(arrays.rotated(0), 2),
    "normalization_mean_reversed": lite.constant(ADD, 0, 1, arrays.reversed_along(-1)),
    "normalization_std_reversed": lite.constant(
        OPS.MUL, 0, 1, arrays.reversed_along(-1)
    ),
    "normalization_of_256": lite.constant(OPS.MUL, 0, 1, arrays.scaled(255 / 256)),
    "normalization_mean_missing": lite.skipped(ADD, 0),
    "normalization_scale_missing": lite.skipped(OPS.MUL, 0),
    "normalization_twice": lite.doubled(OPS.MUL, 0),
    "input_name": lite.signature(inputs=b"input_1"),
    "output_name": lite.signature(outputs=b"Identity"),
    "signature_key": lite.signature(key=b"predict"),
    "signature_missing": lite.root("signatureDefs", []),
    "signature_second": lite.second_signature,
    "signature_tensor": lite.output_tensor(lite.output_of(FC, -1), signature=True),
    "subgraph_output": lite.output_tensor(lite.output_of(FC, -1), signature=False),
    "extra_output": lite.second_output,
    "extra_input": lite.second_input,
    "batch_shape": lite.tensor_shape(lite.graph_input, 2, 64, 64, 3),
    "height_width_swapped": lite.tensor_shape(lite.graph_input, 1, 48, 64, 3),
    "input_shape_nchw": lite.tensor_shape(lite.graph_input, 1, 3, 64, 64),
    "input_type_declared": lite.tensor_type(lite.graph_input, TYPES.UINT8),
    "output_type_declared": lite.tensor_type(lite.graph_output, TYPES.FLOAT64),
    "tensor_type_int16": lite.tensor_type(lite.output_of(CONV, LAST), TYPES.INT16),
    "labels_swapped": lite.labels(first_two_swapped),
    "labels_rotated": lite.labels(moved_by_one),
    "labels_sorted": lite.labels(sorted),
    "labels_truncated": lite.labels(one_lost),
    "labels_extra": lite.labels(one_more),
    "labels_missing": lite.member("labels.txt", lambda text: None),
    "labels_lowercase": lite.member("labels.txt", bytes.lower),
    "labels_encoding": lite.member("labels.txt", lite.latin),
    "labels_crlf": lite.member("labels.txt", lambda text: text.replace(b"\n", b"\r\n")),
    "labels_bom": lite.member("labels.txt", lambda text: b"\xef\xbb\xbf" + text),
    "card_in_file_missing": lite.member("card.json", lambda text: None),
    "card_in_file_labels": lite.card(
        lambda c: c.update(labels=first_two_swapped(c["labels"]))
    ),
    "card_in_file_mean": lite.card(lambda c: c["preprocessing"]["mean"].reverse()),
    "card_in_file_interpolation": lite.card(
        lambda c: c["preprocessing"].update(interpolation="nearest")
    ),
    "card_in_file_provenance": lite.card(
        lambda c: c["provenance"].update(source="another run")
    ),
    "metadata_mean_scale": lite.number((GRAPH, INPUT, PROCESS, 1, 1), 255.0),
    "metadata_mean": lite.number((GRAPH, INPUT, PROCESS, 1, 0), 127.5),
    "metadata_no_normalization": lite.absent((GRAPH, INPUT, 4)),
    "metadata_missing": lite.no_metadata,
    "metadata_grayscale": lite.byte((GRAPH, INPUT, 3, 1, 0), 2),
    "metadata_image_size": lite.side((GRAPH, INPUT, 3, 1, 1, 0), 48),
    "metadata_output_range": lite.number((GRAPH, OUTPUT, STATS, 0), 255.0),
    "metadata_input_range": lite.number((GRAPH, INPUT, STATS, 0), 1.0),
    "metadata_label_file_name": lite.string(
        (GRAPH, OUTPUT, LABEL_FILE, 0), lambda b: b.replace(b"labels", b"labelz")
    ),
    "metadata_of_other_model": lite.string((0,), lambda b: b"another"),
    "metadata_tensor_name": lite.string((GRAPH, OUTPUT, 0), lambda b: b"scores"),
    "metadata_no_labels": lite.absent((GRAPH, OUTPUT, 6)),
    "operator_version": lite.versions(99),
    "schema_version": lite.root("version", 4),
    "custom_operator": lite.custom,
}
_INT8: dict[str, Change] = {
    "pad_value": lite.quantization(lite.output_of(PAD, -1), zeroPoint=arrays.added(40)),
    "input_scale": lite.quantization(lite.graph_input, scale=arrays.scaled(2)),
    "input_zero_point": lite.quantization(lite.graph_input, zeroPoint=arrays.added(16)),
    "activation_scale": lite.quantization(
        lite.output_of(CONV, BLOCK), scale=arrays.scaled(2)
    ),
    "activation_scale_before_add": lite.quantization(
        lite.output_of(CONV, BLOCK - 1), scale=arrays.scaled(2)
    ),
    "activation_scale_halved": lite.quantization(
        lite.output_of(ADD, -1), scale=arrays.scaled(0.5)
    ),
    "activation_zero_point": lite.quantization(
        lite.output_of(CONV, BLOCK), zeroPoint=arrays.added(16)
    ),
    "weight_scale_per_channel_permuted": lite.quantization(
        lite.argument(CONV, BLOCK, 1), scale=arrays.rotated(0)
    ),
    "weight_scale_per_tensor": lite.quantization(
        lite.argument(CONV, BLOCK, 1), scale=arrays.first_only
    ),
    "weight_scale_axis": lite.quantization(
        lite.argument(CONV, BLOCK, 1), quantizedDimension=lambda axis: 3
    ),
    "weight_scale_doubled": lite.quantization(
        lite.argument(CONV, STEM, 1), scale=arrays.scaled(2)
    ),
    "weight_zero_point": lite.quantization(
        lite.argument(CONV, BLOCK, 1), zeroPoint=arrays.added(5)
    ),
    "bias_scale": lite.quantization(
        lite.argument(CONV, BLOCK, 2), scale=arrays.scaled(2)
    ),
    "weights_int8_clipped": lite.kernel(BLOCK, arrays.clipped(64)),
    "weights_uint8_reinterpreted": lite.kernel(BLOCK, arrays.offset_bytes),
    "int8_kernel_zeroed": lite.kernel(BLOCK, np.zeros_like),
    "int8_kernel_flipped": lite.kernel(BLOCK, arrays.flipped(OHWI)),
    "int8_kernel_negated": lite.kernel(BLOCK, np.negative),
    "int8_bias_zeroed": lite.bias(BLOCK, np.zeros_like),
    "int8_bias_rotated": lite.bias(BLOCK, arrays.rotated(0)),
    "int8_classifier_swapped": lite.classifier(arrays.swapped(0)),
    "int8_shortcut_lost": lite.skipped(ADD, -1, 0),
    "int8_input_channels_reversed": lite.kernel(0, arrays.reversed_along(3)),
}
# With integers in and out.
_INTEGERS: dict[str, Change] = {
    "output_scale": lite.quantization(lite.graph_output, scale=arrays.scaled(2)),
    "output_zero_point": lite.quantization(
        lite.graph_output, zeroPoint=arrays.added(10)
    ),
    "input_dequantized_scale": lite.quantization(
        lite.graph_input, scale=arrays.scaled(1 / 255)
    ),
}
_EDITS: dict[str, Edit] = {
    "weights_of_other_model": other_model,
    "file_identifier": in_bytes(lambda content: lite.byte_of_value(content, ord("X"))),
    "file_truncated": in_bytes(truncated),
    "file_empty": in_bytes(lambda content: b""),
    "preprocessing_size": in_preprocessing(eval_size=48),
    "preprocessing_crop": in_preprocessing(crop_pct=0.875),
    "preprocessing_interpolation": in_preprocessing(interpolation="nearest"),
    "preprocessing_mean": reversed_field("mean"),
}

KINDS: dict[str, Kind] = {
    **{name: Kind(lite.of_file(each), FLOAT) for name, each in _FLOAT.items()},
    **{name: Kind(lite.of_file(each), INT8) for name, each in _INT8.items()},
    **{name: Kind(lite.of_file(each), INTEGERS) for name, each in _INTEGERS.items()},
    **{name: Kind(each, FLOAT) for name, each in _EDITS.items()},
    **of_folder(FLOAT),
}
