// The ops of one device, for its register.cpp.
#pragma once

#include <torch/library.h>

#include "torch/confusion_matrix.h"
#include "torch/dense_crf.h"
#include "torch/domain_transform.h"
#include "torch/interp.h"
#include "torch/merge_scores.h"
#include "torch/predict.h"
#include "torch/segmentation_loss.h"

namespace repro {

template <class On>
void register_ops(torch::Library& m) {
  m.impl("interp", interp_op<On>);
  m.impl("interp_backward", interp_backward_op<On>);
  m.impl("merge_scores", merge_scores_op<On>);
  m.impl("merge_scores_backward", merge_scores_backward_op<On>);
  m.impl("predict", predict_op<On>);
  m.impl("segmentation_loss", segmentation_loss_op<On>);
  m.impl("confusion_matrix", confusion_matrix_op<On>);
  m.impl("dense_crf", dense_crf_op<On>);
  m.impl("domain_transform", domain_transform_op<On>);
  m.impl("domain_transform_backward", domain_transform_backward_op<On>);
}

}  // namespace repro
