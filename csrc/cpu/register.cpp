// The operators' CPU implementations.
#include "torch/register.h"

TORCH_LIBRARY_IMPL(repro, CPU, m) { repro::register_ops<repro::OnCpu>(m); }
