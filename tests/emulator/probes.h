// Tiny kernels, each of which does one thing that the emulator has to do right, or to notice.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "simt.h"

// Runs the kernel of this name and returns what it wrote. Throws std::out_of_range where there is none.
std::vector<uint32_t> run_probe(const std::string& name, simt::Schedule schedule);
