"""Rewrite an exported graph for processors: the same results, in operators that are faster there.

The plain graph is made of standard ONNX operators and stays the source of truth: TensorRT reads
it, and every other engine that is not a processor's. The rewritten one lies beside it, reads the
same weights file, and holds operators of onnxruntime's own domain, which OpenVINO knows too. Each
rewrite is a function that changes a model in place and returns how often it did; it looks at the
graph only, not at what model it is of.
"""
