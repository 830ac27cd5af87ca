"""llama.cpp through the C functions that llama-cpp-python binds: no Python between the tokens but one call each.

Its high-level class copies the whole vocabulary's logits to numpy for every token; that would not be llama.cpp at its best.
The context, with its cache, is made when the worker starts, before any clock.
"""

import ctypes
import time

from protocol import serve, tokens_answer


class Engine:
    def __init__(self, settings):
        import llama_cpp

        self._library = llama_cpp
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)  # kept: the library holds only its address
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(settings["model"].encode(), llama_cpp.llama_model_default_params())
        self._context = llama_cpp.llama_init_from_model(self._model, _context_params(llama_cpp, settings))
        if not self._context:
            raise SystemExit("llama.cpp made no context")
        self._greedy = llama_cpp.llama_sampler_init_greedy()
        system = llama_cpp.llama_print_system_info().decode()
        self.facts = {"threads": settings["threads"], "versions": _versions(), "system_info": system}

    def generate(self, request):
        library, context, greedy = self._library, self._context, self._greedy
        library.llama_memory_clear(library.llama_get_memory(context), False)
        prompt = (library.llama_token * len(request["prompt_ids"]))(*request["prompt_ids"])
        token = (library.llama_token * 1)()
        ids, times_s = [], []
        start_s = time.perf_counter()
        batch = library.llama_batch_get_one(prompt, len(prompt))
        for _ in range(request["new_tokens"]):
            if library.llama_decode(context, batch) != 0:
                raise SystemExit("llama_decode failed")
            token[0] = library.llama_sampler_sample(greedy, context, -1)
            times_s.append(time.perf_counter())
            ids.append(token[0])
            batch = library.llama_batch_get_one(token, 1)
        return tokens_answer(start_s, ids, times_s)


def _context_params(library, settings):
    params = library.llama_context_default_params()
    params.n_ctx = settings["context_length"]
    params.n_batch = settings["context_length"]  # the most tokens that one llama_decode takes
    params.n_ubatch = settings["ubatch"]  # and computes at once
    params.n_threads = params.n_threads_batch = settings["threads"]
    params.flash_attn_type = int(settings["flash_attention"])  # 0 off, 1 on; the library's own default is -1, "auto"
    params.no_perf = True
    return params


def _versions():
    from importlib.metadata import version

    return {"llama_cpp_python": version("llama_cpp_python")}


if __name__ == "__main__":
    serve(Engine)
