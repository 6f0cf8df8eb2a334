// Compute buffers of llama.cpp's contexts, as its own allocator plans them: no weights, no memory.
//
// Reads models from standard input (made by gpu_llama_cpp.py) and prints one line for each buffer type of each context:
//   model NAME                      begins a model; its metadata follow
//   u KEY N | f KEY X | b KEY 0/1 | s KEY TEXT | a KEY N N N ... | o KEY 0/1 0/1 ...
//   context FLASH_ATTN UBATCH CTX SEQS UNIFIED TYPE_K TYPE_V OUTPUTS
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "gguf.h"
#include "llama.h"
#include "../src/llama-ext.h"

static ggml_type type_of(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const char * known = ggml_type_name((ggml_type) i);
        if (known && name == known) return (ggml_type) i;
    }
    std::fprintf(stderr, "no type %s\n", name.c_str());
    std::exit(2);
}

static void set(gguf_context * gguf, char kind, const std::string & key, std::istringstream & rest) {
    if (kind == 'u') { uint32_t v; rest >> v; gguf_set_val_u32(gguf, key.c_str(), v); }
    if (kind == 'f') { float v; rest >> v; gguf_set_val_f32(gguf, key.c_str(), v); }
    if (kind == 'b') { int v; rest >> v; gguf_set_val_bool(gguf, key.c_str(), v != 0); }
    if (kind == 's') { std::string v; rest >> v; gguf_set_val_str(gguf, key.c_str(), v.c_str()); }
    if (kind == 'a') {
        std::vector<uint32_t> all; uint32_t v;
        while (rest >> v) all.push_back(v);
        gguf_set_arr_data(gguf, key.c_str(), GGUF_TYPE_UINT32, all.data(), all.size());
    }
    if (kind == 'o') {
        std::vector<int8_t> all; int v;
        while (rest >> v) all.push_back((int8_t) v);
        gguf_set_arr_data(gguf, key.c_str(), GGUF_TYPE_BOOL, all.data(), all.size());
    }
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    ggml_backend_load_all();
    const int gpu_layers = argc > 1 ? std::atoi(argv[1]) : 999;
    std::string line, name;
    gguf_context * gguf = nullptr;
    llama_model * model = nullptr;
    while (std::getline(std::cin, line)) {
        std::istringstream words(line);
        std::string kind, key;
        words >> kind >> key;
        if (kind == "model") {
            if (model) llama_model_free(model);
            model = nullptr;
            name = key;
            gguf = gguf_init_empty();
        } else if (kind == "context") {
            if (!model) {
                auto params = llama_model_default_params();
                params.no_alloc = true;
                params.n_gpu_layers = gpu_layers;
                model = llama_model_init_from_user(gguf, [](ggml_tensor *, void *) {}, nullptr, params);
                if (!model) { std::printf("%s refused\n", name.c_str()); std::exit(3); }
            }
            auto params = llama_context_default_params();
            std::string type_k, type_v;
            int unified;
            words >> params.n_ubatch >> params.n_ctx >> params.n_seq_max >> unified >> type_k >> type_v >> params.n_outputs_max;
            params.n_batch = 2048;
            params.swa_full = false;  // as llama-server and llama-cli start it
            params.flash_attn_type = key == "1" ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
            params.kv_unified = unified != 0;
            params.type_k = type_of(type_k);
            params.type_v = type_of(type_v);
            llama_context * context = llama_init_from_model(model, params);
            if (!context) { std::printf("%s %s refused\n", name.c_str(), line.c_str()); continue; }
            for (const auto & [buffer, bytes] : llama_get_memory_breakdown(context))
                std::printf("%s %s %s %zu %zu\n", name.c_str(), line.c_str(), ggml_backend_buft_name(buffer), bytes.context, bytes.compute);
            std::fflush(stdout);
            llama_free(context);
        } else if (!kind.empty()) {
            set(gguf, kind[0], key, words);
        }
    }
}
