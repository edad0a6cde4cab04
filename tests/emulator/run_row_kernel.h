// The body of the functions in rows.h.
#pragma once

#include "cuda/kernel.cuh"
#include "rows.h"

namespace fastsample::cuda {

template <class Element>
void run_row_kernel(const simt::Launch& launch, const Work& work, const Shape& shape, const Workspace& workspace) {
  simt::launch(launch, [&] {
    if (shape.resident)
      row_kernel<Element, true>(work, shape, workspace);
    else
      row_kernel<Element, false>(work, shape, workspace);
  });
}

}  // namespace fastsample::cuda
