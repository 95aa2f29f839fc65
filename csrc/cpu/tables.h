// The sampling rule of one axis as tables, made once per call: the forward's taps and the adjoint's readers.
#pragma once

#include <algorithm>
#include <vector>

#include "ops.h"

namespace repro {

// Rows of `elements` each that make a task worth its thread.
inline int64_t rows_per_task(int64_t elements) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements)); }

template <class Acc>
std::vector<Tap<Acc>> taps(const Axis& axis) {
  std::vector<Tap<Acc>> table;
  table.reserve(axis.n_out);
  for (int64_t o = 0; o < axis.n_out; ++o) table.push_back(axis.tap<Acc>(o));
  return table;
}

// The outputs begin, begin + 1, ... that read one input, and their weights.
template <class Acc>
struct Readers {
  int64_t begin;
  std::vector<Acc> weights;
};

template <class Acc>
std::vector<Readers<Acc>> readers(const Axis& axis) {
  std::vector<Readers<Acc>> table(axis.n_in);
  for (int64_t i = 0; i < axis.n_in; ++i) {
    table[i].begin = axis.begin(i);
    for (int64_t o = axis.begin(i); o < axis.end(i); ++o) table[i].weights.push_back(axis.weight<Acc>(o, i));
  }
  return table;
}

// Calls visit(o * W_out + p, row weight * column weight) for every output position (o, p) that reads one input pixel.
template <class Acc, class Visit>
void for_each_reader(const Readers<Acc>& rows, const Readers<Acc>& columns, int64_t W_out, const Visit& visit) {
  for (size_t a = 0; a < rows.weights.size(); ++a)
    for (size_t b = 0; b < columns.weights.size(); ++b)
      visit((rows.begin + static_cast<int64_t>(a)) * W_out + columns.begin + static_cast<int64_t>(b),
            rows.weights[a] * columns.weights[b]);
}

}  // namespace repro
