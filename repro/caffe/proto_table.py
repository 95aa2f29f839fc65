"""caffe.proto as a table: of each message, its fields as name=kind, * where repeated, :default where there is one.

Caffe: src/caffe/proto/caffe.proto (BVLC 9b8915401; DeepLab v1 and v2). Numbers of fields are left out: text has none; words stand in the order of theirs.
"""

ENUMS = {
    "Phase": "TRAIN TEST",
    "DimCheckMode": "STRICT PERMISSIVE",
    "Engine": "DEFAULT CAFFE CUDNN",
    "NormalizationMode": "FULL VALID BATCH_SIZE NONE",
    "VarianceNorm": "FAN_IN FAN_OUT AVERAGE",
    "DB": "LEVELDB LMDB",
    "EltwiseOp": "PROD SUM MAX",
    "HingeNorm": "L1 L2",
    "NormRegion": "ACROSS_CHANNELS WITHIN_CHANNEL",
    "PoolMethod": "MAX AVE STOCHASTIC",
    "RoundMode": "CEIL FLOOR",
    "ReductionOp": "SUM ASUM SUMSQ MEAN",
    "LabelType": "NONE IMAGE PIXEL",
    "SnapshotFormat": "HDF5 BINARYPROTO",
    "SolverMode": "CPU GPU",
    "SolverType": "SGD NESTEROV ADAGRAD RMSPROP ADADELTA ADAM",
}

# A file may give a word's number, as those of 2013 do: solver_mode: 1. The words are numbered from 0, but for these.
FIRST = {"HingeNorm": 1, "ReductionOp": 1}

MESSAGES = {
    "NetParameter": 'name=string:"" input=string* input_shape=BlobShape* input_dim=int32* force_backward=bool:false state=NetState '
    "debug_info=bool:false layer=LayerParameter*",
    "BlobShape": "dim=int64*",
    "BlobProto": "shape=BlobShape data=float* diff=float* double_data=float* double_diff=float* num=int32:0 channels=int32:0 "
    "height=int32:0 width=int32:0",
    "NetState": "phase=Phase:TEST level=int32:0 stage=string*",
    "NetStateRule": "phase=Phase min_level=int32 max_level=int32 stage=string* not_stage=string*",
    "ParamSpec": 'name=string:"" share_mode=DimCheckMode:STRICT lr_mult=float:1 decay_mult=float:1',
    "FillerParameter": "type=string:constant value=float:0 min=float:0 max=float:1 mean=float:0 std=float:1 sparse=int32:-1 "
    "variance_norm=VarianceNorm:FAN_IN",
    "LayerParameter": 'name=string:"" type=string:"" bottom=string* top=string* phase=Phase loss_weight=float* param=ParamSpec* blobs=BlobProto* '
    "propagate_down=bool* include=NetStateRule* exclude=NetStateRule* strict_dim=bool:true transform_param=TransformationParameter "
    "loss_param=LossParameter accuracy_param=AccuracyParameter adaptive_bias_channel_param=AdaptiveBiasChannelParameter "
    "argmax_param=ArgMaxParameter batch_norm_param=BatchNormParameter bias_param=BiasParameter bias_channel_param=BiasChannelParameter "
    "concat_param=ConcatParameter contrastive_loss_param=ContrastiveLossParameter convolution_param=ConvolutionParameter "
    "crop_param=CropParameter data_param=DataParameter dense_crf_param=DenseCRFParameter "
    "domain_transform_param=DomainTransformParameter dropout_param=DropoutParameter dummy_data_param=DummyDataParameter "
    "eltwise_param=EltwiseParameter elu_param=ELUParameter embed_param=EmbedParameter exp_param=ExpParameter "
    "flatten_param=FlattenParameter hdf5_data_param=HDF5DataParameter hdf5_output_param=HDF5OutputParameter "
    "hinge_loss_param=HingeLossParameter image_data_param=ImageDataParameter infogain_loss_param=InfogainLossParameter "
    "inner_product_param=InnerProductParameter input_param=InputParameter interp_param=InterpParameter log_param=LogParameter "
    "lrn_param=LRNParameter mat_read_param=MatReadParameter mat_write_param=MatWriteParameter memory_data_param=MemoryDataParameter "
    "mvn_param=MVNParameter padding_param=PaddingParameter parameter_param=ParameterParameter pooling_param=PoolingParameter power_param=PowerParameter "
    "prelu_param=PReLUParameter python_param=PythonParameter recurrent_param=RecurrentParameter reduction_param=ReductionParameter "
    "relu_param=ReLUParameter reshape_param=ReshapeParameter scale_param=ScaleParameter seg_accuracy_param=SegAccuracyParameter "
    "sigmoid_param=SigmoidParameter slice_param=SliceParameter softmax_param=SoftmaxParameter spp_param=SPPParameter "
    "tanh_param=TanHParameter threshold_param=ThresholdParameter tile_param=TileParameter unique_label_param=UniqueLabelParameter "
    "window_data_param=WindowDataParameter",
    "TransformationParameter": 'scale=float:1 mirror=bool:false crop_size=uint32:0 mean_file=string:"" mean_value=float* '
    "force_color=bool:false force_gray=bool:false scale_factors=float* crop_width=uint32:0 crop_height=uint32:0",
    "LossParameter": 'ignore_label=int32 normalization=NormalizationMode:VALID normalize=bool weight_source=string:""',
    "AccuracyParameter": "top_k=uint32:1 axis=int32:1 ignore_label=int32",
    "AdaptiveBiasChannelParameter": "num_iter=int32:1 bg_portion=float:0.2 fg_portion=float:0.2 suppress_others=bool:true "
    "margin_others=float:1e-5",
    "ArgMaxParameter": "out_max_val=bool:false top_k=uint32:1 axis=int32",
    "BatchNormParameter": "use_global_stats=bool moving_average_fraction=float:0.999 eps=float:1e-5 update_global_stats=bool:false",
    "BiasParameter": "axis=int32:1 num_axes=int32:1 filler=FillerParameter",
    "BiasChannelParameter": "bg_bias=float:1 fg_bias=float:2 ignore_label=int32* label_type=LabelType:IMAGE background_label=int32",
    "ConcatParameter": "axis=int32:1 concat_dim=uint32:1",
    "ContrastiveLossParameter": "margin=float:1 legacy_version=bool:false",
    "ConvolutionParameter": "num_output=uint32:0 bias_term=bool:true pad=uint32* kernel_size=uint32* stride=uint32* dilation=uint32* "
    "pad_h=uint32:0 pad_w=uint32:0 kernel_h=uint32 kernel_w=uint32 stride_h=uint32 stride_w=uint32 group=uint32:1 "
    "weight_filler=FillerParameter bias_filler=FillerParameter engine=Engine:DEFAULT axis=int32:1 force_nd_im2col=bool:false "
    "hole=uint32* hole_h=uint32 hole_w=uint32",
    "CropParameter": "axis=int32:2 offset=uint32*",
    "DataParameter": 'source=string:"" batch_size=uint32:0 rand_skip=uint32:0 backend=DB:LEVELDB scale=float:1 mean_file=string:"" '
    "crop_size=uint32:0 mirror=bool:false force_encoded_color=bool:false prefetch=uint32:4",
    "DenseCRFParameter": "max_iter=uint32:10 pos_xy_std=float* pos_w=float* bi_xy_std=float* bi_rgb_std=float* bi_w=float* "
    "output_probability=bool:true",
    "DomainTransformParameter": "num_iter=uint32:3 spatial_sigma=float:50 range_sigma=float:5 min_weight=float:0",
    "DropoutParameter": "dropout_ratio=float:0.5 scale_train=bool:true",
    "DummyDataParameter": "data_filler=FillerParameter* shape=BlobShape* num=uint32* channels=uint32* height=uint32* width=uint32*",
    "EltwiseParameter": "operation=EltwiseOp:SUM coeff=float* stable_prod_grad=bool:true",
    "ELUParameter": "alpha=float:1",
    "EmbedParameter": "num_output=uint32:0 input_dim=uint32:0 bias_term=bool:true weight_filler=FillerParameter bias_filler=FillerParameter",
    "ExpParameter": "base=float:-1 scale=float:1 shift=float:0",
    "FlattenParameter": "axis=int32:1 end_axis=int32:-1",
    "HDF5DataParameter": 'source=string:"" batch_size=uint32:0 shuffle=bool:false',
    "HDF5OutputParameter": 'file_name=string:""',
    "HingeLossParameter": "norm=HingeNorm:L1",
    "ImageDataParameter": 'source=string:"" batch_size=uint32:1 rand_skip=uint32:0 shuffle=bool:false new_height=uint32:0 new_width=uint32:0 '
    'is_color=bool:true scale=float:1 mean_file=string:"" crop_size=uint32:0 mirror=bool:false root_folder=string:"" '
    "label_type=LabelType:IMAGE ignore_label=int32:255 has_label=bool:true max_labels=int32:1 prefetch=uint32:1",
    "InfogainLossParameter": 'source=string:"" axis=int32:1',
    "InnerProductParameter": "num_output=uint32:0 bias_term=bool:true weight_filler=FillerParameter bias_filler=FillerParameter "
    "axis=int32:1 transpose=bool:false",
    "InputParameter": "shape=BlobShape*",
    "InterpParameter": "height=int32:0 width=int32:0 zoom_factor=int32:1 shrink_factor=int32:1 pad_beg=int32:0 pad_end=int32:0",
    "LogParameter": "base=float:-1 scale=float:1 shift=float:0",
    "LRNParameter": "local_size=uint32:5 alpha=float:1 beta=float:0.75 norm_region=NormRegion:ACROSS_CHANNELS k=float:1 "
    "engine=Engine:DEFAULT",
    "MatReadParameter": 'prefix=string:"" source=string:"" strip=int32:0 batch_size=int32:1 reshape=int32*',
    "MatWriteParameter": 'prefix=string:"" source=string:"" strip=int32:0 period=int32:1',
    "MemoryDataParameter": "batch_size=uint32:0 channels=uint32:0 height=uint32:0 width=uint32:0",
    "MVNParameter": "normalize_variance=bool:true across_channels=bool:false eps=float:1e-9",
    "PaddingParameter": "pad_beg=int32:0 pad_end=int32:0",
    "ParameterParameter": "shape=BlobShape",
    "PoolingParameter": "pool=PoolMethod:MAX pad=uint32:0 pad_h=uint32:0 pad_w=uint32:0 kernel_size=uint32 kernel_h=uint32 "
    "kernel_w=uint32 stride=uint32:1 stride_h=uint32 stride_w=uint32 engine=Engine:DEFAULT global_pooling=bool:false "
    "round_mode=RoundMode:CEIL",
    "PowerParameter": "power=float:1 scale=float:1 shift=float:0",
    "PReLUParameter": "filler=FillerParameter channel_shared=bool:false",
    "PythonParameter": 'module=string:"" layer=string:"" param_str=string:"" share_in_parallel=bool:false',
    "RecurrentParameter": "num_output=uint32:0 weight_filler=FillerParameter bias_filler=FillerParameter debug_info=bool:false "
    "expose_hidden=bool:false",
    "ReductionParameter": "operation=ReductionOp:SUM axis=int32:0 coeff=float:1",
    "ReLUParameter": "negative_slope=float:0 engine=Engine:DEFAULT",
    "ReshapeParameter": "shape=BlobShape axis=int32:0 num_axes=int32:-1",
    "ScaleParameter": "axis=int32:1 num_axes=int32:1 filler=FillerParameter bias_term=bool:false bias_filler=FillerParameter",
    "SegAccuracyParameter": "ignore_label=int32* reset=bool:true",
    "SigmoidParameter": "engine=Engine:DEFAULT",
    "SliceParameter": "axis=int32:1 slice_point=uint32* slice_dim=uint32:1",
    "SoftmaxParameter": "engine=Engine:DEFAULT axis=int32:1",
    "SPPParameter": "pyramid_height=uint32:0 pool=PoolMethod:MAX engine=Engine:DEFAULT",
    "TanHParameter": "engine=Engine:DEFAULT",
    "ThresholdParameter": "threshold=float:0",
    "TileParameter": "axis=int32:1 tiles=int32:0",
    "UniqueLabelParameter": "max_labels=int32:1 ignore_label=float* force_label=float*",
    "WindowDataParameter": 'source=string:"" scale=float:1 mean_file=string:"" batch_size=uint32:0 crop_size=uint32:0 mirror=bool:false '
    "fg_threshold=float:0.5 bg_threshold=float:0.5 fg_fraction=float:0.25 context_pad=uint32:0 crop_mode=string:warp "
    'cache_images=bool:false root_folder=string:""',
    "SolverParameter": 'net=string:"" net_param=NetParameter train_net=string:"" test_net=string* train_net_param=NetParameter '
    "test_net_param=NetParameter* train_state=NetState test_state=NetState* test_iter=int32* test_interval=int32:0 "
    "test_compute_loss=bool:false test_initialization=bool:true base_lr=float:0 display=int32:0 average_loss=int32:1 max_iter=int32:0 "
    'iter_size=int32:1 lr_policy=string:"" gamma=float:0 power=float:0 momentum=float:0 weight_decay=float:0 '
    "regularization_type=string:L2 stepsize=int32:0 stepvalue=int32* clip_gradients=float:-1 snapshot=int32:0 "
    'snapshot_prefix=string:"" snapshot_diff=bool:false snapshot_format=SnapshotFormat:BINARYPROTO solver_mode=SolverMode:GPU '
    "device_id=int32:0 random_seed=int64:-1 type=string:SGD delta=float:1e-8 momentum2=float:0.999 rms_decay=float:0.99 "
    "debug_info=bool:false snapshot_after_train=bool:true solver_type=SolverType:SGD layer_wise_reduce=bool:true weights=string*",
}
