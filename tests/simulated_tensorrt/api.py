"""Which members of TensorRT's Python API the simulation offers, and which versions have them: held to the real bindings.

Source of `SINCE` and `UNTIL`: the real modules of 10.3.0, 10.7, 10.13.3, 10.16.1, 11.0, 11.4 and TensorRT-RTX 1.7.1, compared.
"""

PRESETS = ("10.3", "10.13", "10.16", "11.4", "rtx")

# "Class.member" ("" for the module itself): the first TensorRT version that has it, of those that 10.3 lacks; "rtx": only RTX.
SINCE: dict[str, str] = {
    ".IAttention": "10.16",
    ".IAttentionInputLayer": "10.16",
    ".ComputeCapability": "rtx",
    ".CudaGraphStrategy": "rtx",
    ".DynamicShapesKernelSpecializationStrategy": "rtx",
    ".EngineValidity": "rtx",
    ".IRuntimeCache": "rtx",
    ".IRuntimeConfig": "10.13",
    "IBuilderConfig.num_compute_capabilities": "rtx",
    "IBuilderConfig.set_compute_capability": "rtx",
    "ICudaEngine.create_runtime_config": "10.13",
    "ICudaEngine.get_aliased_input_tensor": "10.16",
    "IExecutionContext.is_stream_capturable": "rtx",
    "INetworkDefinition.add_kv_cache_update": "10.16",
    "IRuntimeConfig.create_runtime_cache": "rtx",
    "IRuntimeConfig.cuda_graph_strategy": "rtx",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": "rtx",
    "IRuntimeConfig.set_runtime_cache": "rtx",
    "LayerType.ATTENTION_INPUT": "10.16",
    "OnnxParser.load_initializer": "10.13",
    "OnnxParser.load_model_proto": "10.13",
    "OnnxParser.parse_model_proto": "10.13",
    "Runtime.engine_header_size": "rtx",
    "Runtime.get_engine_validity": "rtx",
}

# The first version that lacks it again.
UNTIL: dict[str, str] = {"NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "11.4"}


def offers(preset: str, member: str) -> bool:
    """Whether the library of a preset has a member, written as in SINCE."""
    since, until = SINCE.get(member, PRESETS[0]), UNTIL.get(member)
    if preset == "rtx":
        return until is None  # RTX is as new as the newest
    place = PRESETS.index(preset)
    return since != "rtx" and PRESETS.index(since) <= place and (until is None or place < PRESETS.index(until))


# Class name ("" for the module): the members that the simulation offers, in the version that has most of them.
API: dict[str, set[str]] = {
    "": {
        *("Builder", "OnnxParser", "Runtime", "ILogger", "IOutputAllocator", "IProgressMonitor", "__version__"),
        *(
            "BuilderFlag",
            "DataType",
            "TensorIOMode",
            "TensorLocation",
            "LayerType",
            "MemoryPoolType",
            "NetworkDefinitionCreationFlag",
        ),
        *("ExecutionContextAllocationStrategy", "INetworkDefinition", "IBuilderConfig", "IOptimizationProfile", "ParserError"),
        *("ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IHostMemory", "ITensor", "ILayer"),
        *("IAttentionInputLayer", "IAttention"),
        *(
            "ComputeCapability",
            "CudaGraphStrategy",
            "DynamicShapesKernelSpecializationStrategy",
            "EngineValidity",
            "IRuntimeCache",
        ),
    },
    "Builder": {"create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"},
    "INetworkDefinition": {"num_inputs", "get_input", "num_layers", "get_layer", "add_kv_cache_update"},
    "ITensor": {"name", "shape", "is_shape_tensor"},
    "ILayer": {"name", "type"},
    "IAttentionInputLayer": {"attention"},
    "IAttention": {"decomposable"},
    "IBuilderConfig": {
        *("set_memory_pool_limit", "add_optimization_profile", "progress_monitor", "clear_flag"),
        *("num_compute_capabilities", "set_compute_capability"),
    },
    "IOptimizationProfile": {"set_shape", "set_shape_input"},
    "OnnxParser": {"parse", "num_errors", "get_error", "load_model_proto", "load_initializer", "parse_model_proto"},
    "ParserError": {"node_name", "node_operator", "desc"},
    "Runtime": {"deserialize_cuda_engine", "engine_host_code_allowed", "engine_header_size", "get_engine_validity"},
    "ICudaEngine": {
        *(
            "num_io_tensors",
            "get_tensor_name",
            "get_tensor_mode",
            "get_tensor_dtype",
            "get_tensor_shape",
            "get_tensor_location",
        ),
        *("num_optimization_profiles", "device_memory_size_v2", "create_execution_context", "create_runtime_config"),
        *("get_aliased_input_tensor",),
    },
    "IRuntimeConfig": {
        *("set_execution_context_allocation_strategy", "create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"),
        *("dynamic_shapes_kernel_specialization_strategy",),
    },
    "IRuntimeCache": {"serialize", "deserialize"},
    "IExecutionContext": {
        *("set_device_memory", "set_optimization_profile_async", "set_input_shape", "set_tensor_address", "get_tensor_shape"),
        *("infer_shapes", "set_output_allocator", "execute_async_v3", "is_stream_capturable"),
    },
    "ILogger": {"log", "Severity"},
    "IOutputAllocator": set(),
    "IProgressMonitor": {"phase_start", "step_complete", "phase_finish"},
    "IHostMemory": {"nbytes"},
    "BuilderFlag": {"TF32"},
    "DataType": {"FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "INT64"},
    "TensorIOMode": {"INPUT", "OUTPUT", "NONE"},
    "TensorLocation": {"DEVICE", "HOST"},
    "LayerType": {"ATTENTION_INPUT", "ELEMENTWISE"},
    "MemoryPoolType": {"WORKSPACE"},
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH", "STRONGLY_TYPED"},
    "ExecutionContextAllocationStrategy": {"STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"},
    "ComputeCapability": {"NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"},
    "CudaGraphStrategy": {"DISABLED", "WHOLE_GRAPH_CAPTURE"},
    "DynamicShapesKernelSpecializationStrategy": {"LAZY", "EAGER", "NONE"},
    "EngineValidity": {"VALID", "SUBOPTIMAL", "INVALID"},
}
