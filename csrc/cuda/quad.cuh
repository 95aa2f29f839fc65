// Four neighbouring channels as one element of a map of C / 4 channels: one load and one store of up to 16 bytes for
// all four, and one computation of where they lie. Each channel's arithmetic is what it is alone.
#pragma once

#include "shared/storage.h"

namespace repro {

template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Quad {
  T item[4];
};

template <class T>
struct Accumulator<Quad<T>> {
  using type = Quad<acc_t<T>>;
};

// What the channels of an element are multiplied by.
template <class T>
struct Weight {
  using type = acc_t<T>;
};
template <class T>
struct Weight<Quad<T>> {
  using type = acc_t<T>;
};
template <class T>
using weight_t = typename Weight<T>::type;

template <class T>
REPRO_HD Quad<acc_t<T>> load(const Quad<T>& x) {
  Quad<acc_t<T>> value;
#pragma unroll
  for (int k = 0; k < 4; ++k) value.item[k] = load(x.item[k]);
  return value;
}

template <class T>
REPRO_HD void store(Quad<T>* p, const Quad<acc_t<T>>& x) {
  Quad<T> value;
#pragma unroll
  for (int k = 0; k < 4; ++k) store(value.item + k, x.item[k]);
  *p = value;
}

template <class Acc>
REPRO_HD Quad<Acc> operator*(Acc weight, const Quad<Acc>& x) {
  Quad<Acc> product;
#pragma unroll
  for (int k = 0; k < 4; ++k) product.item[k] = weight * x.item[k];
  return product;
}

template <class Acc>
REPRO_HD Quad<Acc> operator+(const Quad<Acc>& a, const Quad<Acc>& b) {
  Quad<Acc> sum;
#pragma unroll
  for (int k = 0; k < 4; ++k) sum.item[k] = a.item[k] + b.item[k];
  return sum;
}

// Calls visit(from, to, C) with two maps as maps of quads where their channels and addresses allow it, else as they are.
template <class T, class Visit>
void with_quads(const T* from, T* to, int64_t C, const Visit& visit) {
  const auto addresses = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (C % 4 == 0 && addresses % alignof(Quad<T>) == 0)
    visit(reinterpret_cast<const Quad<T>*>(from), reinterpret_cast<Quad<T>*>(to), C / 4);
  else
    visit(from, to, C);
}

}  // namespace repro
