"""Operators that a SavedModel may have: those that only compute.

The list is explicit. That an operator is stateless says nothing: `ReadFile` is. Each of
these computes its outputs from its inputs alone, and neither reads nor writes files,
nor prints, nor runs Python, nor reaches other processes or resources by name.
"""

CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
# The functions that they call are in the same file, and checked as well.
CALLING = CALLS | {
    "Case",
    "If",
    "StatelessCase",
    "StatelessIf",
    "StatelessWhile",
    "While",
}
# Exports of reszoo, and what `keras.Model.export` writes for image classifiers.
COMPUTING = frozenset(
    {
        # Layers.
        "AvgPool", "BatchMatMulV2", "BiasAdd", "Conv2D", "DepthwiseConv2dNative",
        "Einsum", "Elu", "FusedBatchNormV3", "LRN", "LeakyRelu", "LogSoftmax",
        "MatMul", "MaxPool", "Relu", "Relu6", "Selu", "Sigmoid", "Softmax",
        "Softplus", "Softsign",
        # Arithmetic.
        "Abs", "Add", "AddN", "AddV2", "Ceil", "Cos", "Cumsum", "DenseBincount", "Div",
        "DivNoNan", "Erf", "Erfc", "Exp", "Expm1", "Floor", "FloorDiv", "FloorMod",
        "Inv", "Log", "Log1p", "Maximum", "Minimum", "Mod", "Mul", "Neg", "Pow",
        "RealDiv", "Reciprocal", "Rint", "Round", "Rsqrt", "Sign", "Sin", "Sqrt",
        "Square", "SquaredDifference", "Sub", "Tanh", "TruncateDiv", "TruncateMod",
        # Reductions.
        "All", "Any", "ArgMax", "ArgMin", "Max", "Mean", "Min", "Prod", "Sum",
        # Comparisons and choice.
        "Bitcast", "BitwiseAnd", "BitwiseOr", "Equal", "Greater", "GreaterEqual",
        "IsFinite", "IsInf", "IsNan", "LeftShift", "Less", "LessEqual", "LogicalAnd",
        "LogicalNot", "LogicalOr", "NotEqual", "RightShift", "Select", "SelectV2",
        "Where",
        # Shapes and places.
        "BatchToSpaceND", "BroadcastArgs", "BroadcastTo", "Cast", "ClipByValue",
        "Concat", "ConcatV2", "Const", "DepthToSpace", "EnsureShape", "ExpandDims",
        "Fill", "Gather", "GatherNd", "GatherV2", "Identity", "IdentityN", "MirrorPad",
        "NoOp", "OneHot", "OnesLike", "Pack", "Pad", "PadV2", "Placeholder",
        "PlaceholderWithDefault", "PreventGradient", "Range", "Rank", "ReadVariableOp",
        "Reshape", "Reverse", "ReverseV2", "Roll", "ScatterNd", "Shape", "ShapeN",
        "Size", "Slice", "Snapshot", "SpaceToBatchND", "SpaceToDepth", "Split",
        "SplitV", "Squeeze", "StopGradient", "StridedSlice", "TensorScatterUpdate",
        "Tile", "TopKV2", "Transpose", "Unpack", "ZerosLike",
        # Images.
        "AdjustContrastv2", "CropAndResize", "DecodeAndCropJpeg", "DecodeBmp",
        "DecodeGif", "DecodeImage", "DecodeJpeg", "DecodePng", "DecodeRaw",
        "ExtractJpegShape", "ResizeArea", "ResizeBicubic", "ResizeBilinear",
        "ResizeNearestNeighbor", "ScaleAndTranslate",
        # Strings: encoded images, and names in the saver.
        "AsString", "RegexFullMatch", "ShardedFilename", "StaticRegexFullMatch",
        "StringJoin", "StringLength", "StringSplitV2", "Substr",
        # Lists.
        "Assert", "TensorListConcatV2", "TensorListElementShape",
        "TensorListFromTensor", "TensorListGetItem", "TensorListLength",
        "TensorListReserve", "TensorListSetItem", "TensorListStack",
    }
) | CALLING  # fmt: skip
# Only outside of functions, where Python never runs them: in a function they would
# reach the variables of other models by name.
IN_GRAPH = frozenset({"AssignVariableOp", "VarHandleOp", "VarIsInitializedOp"})
# Only in the two functions that save and restore the variables. TensorFlow's Python
# runs neither of them; TF Serving runs the second with the folder's own file.
IN_SAVE = frozenset({"DisableCopyOnRead", "MergeV2Checkpoints", "SaveV2"})
IN_RESTORE = frozenset({"AssignVariableOp", "RestoreV2"})
