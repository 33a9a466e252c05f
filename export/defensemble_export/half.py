import onnx


def fp16_from_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    import warnings

    from onnxconverter_common import float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float16.convert_float_to_float16(model, keep_io_types=True)
