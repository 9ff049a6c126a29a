"""Memory of a device for the inputs and outputs of a session, kept from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mutoscope.engines.engine import Array, Tensors, TensorSpec
from mutoscope.engines.onnxruntime_module import import_onnxruntime


class DeviceBuffers:
    """What one session reads from and writes to, on its device, for inputs of the last shapes."""

    def __init__(
        self,
        session: Any,
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        *,
        device: str,
        device_id: int = 0,
    ) -> None:
        """Make the buffers of a session; memory is taken by the first run.

        Args:
            session: An onnxruntime session.
            inputs: Its inputs.
            outputs: Its outputs.
            device: onnxruntime's name of the kind of device: "cuda", "cpu".
            device_id: Which of them.
        """
        self._session = session
        self._device = device
        self._device_id = device_id
        named = {axis for spec in inputs.values() for axis in spec.shape if isinstance(axis, str)}
        # Others may be of another length in the next run: they are allocated in each.
        self._fixed = {
            name: all(isinstance(axis, int) or axis in named for axis in spec.shape)
            for name, spec in outputs.items()
        }
        self.free()

    def free(self) -> None:
        """Give the memory back; the next run takes it again."""
        self._binding: Any = None
        self._values: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._names: list[str] = []
        self.size_bytes = 0

    def run(self, feeds: Mapping[str, Array], names: list[str], run_options: Any = None) -> Tensors:
        """Return new arrays with the outputs of these names for inputs that fit the session."""
        shapes = {name: array.shape for name, array in feeds.items()}
        if (shapes, names) != (self._shapes, self._names):
            self._bind(feeds, names)
            self._shapes, self._names = shapes, names
        for name, array in feeds.items():
            # Up to version 1.24 at least, memory is copied as it lies, in whatever order.
            self._values[name].update_inplace(np.asarray(array, order="C"))
        self._session.run_with_iobinding(self._binding, run_options)
        values = dict(zip(names, self._binding.get_outputs(), strict=True))
        arrays = {name: self._read(value) for name, value in values.items()}
        self._keep_outputs(values, arrays)
        return arrays

    def _bind(self, feeds: Mapping[str, Array], names: list[str]) -> None:
        """Allocate the inputs, and leave the outputs to onnxruntime, which knows their shapes."""
        self.free()
        self._binding = self._session.io_binding()
        make_value = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
        for name, array in feeds.items():
            value = make_value(array.shape, array.dtype.type, self._device, self._device_id)
            self._binding.bind_ortvalue_input(name, value)
            self._values[name] = value
            self.size_bytes += array.nbytes
        for name in names:
            self._binding.bind_output(name, self._device, self._device_id)

    def _read(self, value: Any) -> Array:
        """A new array; on the CPU `numpy` is a view of what the next run writes to."""
        array: Array = value.numpy()
        return np.copy(array) if self._device == "cpu" else array

    def _keep_outputs(self, values: Mapping[str, Any], arrays: Tensors) -> None:
        """Bind what onnxruntime allocated for the runs to come, or let it allocate again."""
        for name in values:
            if not self._fixed[name]:
                self._binding.bind_output(name, self._device, self._device_id)
            elif name not in self._values:
                self._binding.bind_ortvalue_output(name, values[name])
                self._values[name] = values[name]
                self.size_bytes += arrays[name].nbytes
