// The probes, and single instructions of emulated_device.h, for tests/test_emulator.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emulated_device.h"
#include "probes.h"

PYBIND11_MODULE(emulator_probes, module) {
  pybind11::register_local_exception<simt::Error>(module, "KernelError", PyExc_RuntimeError);
  module.def("run", [](const std::string& name, int order, uint64_t seed) {
    return run_probe(name, {static_cast<simt::Order>(order), seed});
  });
  module.def("fadd_rd", &__fadd_rd);
  module.def("half_to_float", &fastsample::cuda::half_to_float);
  module.def("float2ull_rz", &__float2ull_rz);
}
