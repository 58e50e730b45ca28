// The C ABI of third_party/tokenizers, a static library written in Rust.
//
// Functions that return bool give their result in *out and true, or a UTF-8 message in *error and
// false; the other is left alone. A tokenizer may be used by any number of threads at once.
#ifndef QPRUNER_WORKER_ENGINE_TOKENIZER_TOKENIZERS_C_H_
#define QPRUNER_WORKER_ENGINE_TOKENIZER_TOKENIZERS_C_H_

#include <stddef.h>
#include <stdint.h>

extern "C" {

struct qpruner_tokenizers_bytes {
  uint8_t* data;
  size_t size;
};
struct qpruner_tokenizers_ids {
  uint32_t* data;
  size_t size;
};
struct qpruner_tokenizers;  // Opaque.

// From the bytes of a tokenizer.json. Its truncation and padding are switched off.
bool qpruner_tokenizers_open(const char* json, size_t size, qpruner_tokenizers** out,
                             qpruner_tokenizers_bytes* error);
void qpruner_tokenizers_close(qpruner_tokenizers* tokenizer);

bool qpruner_tokenizers_encode(const qpruner_tokenizers* tokenizer, const char* text, size_t size,
                               bool add_special_tokens, qpruner_tokenizers_ids* out,
                               qpruner_tokenizers_bytes* error);
bool qpruner_tokenizers_decode(const qpruner_tokenizers* tokenizer, const uint32_t* ids,
                               size_t size, bool skip_special_tokens, qpruner_tokenizers_bytes* out,
                               qpruner_tokenizers_bytes* error);
// The largest id, -1 if there is none.
bool qpruner_tokenizers_max_id(const qpruner_tokenizers* tokenizer, int64_t* out,
                               qpruner_tokenizers_bytes* error);
// The id of a token by its exact content, -1 if there is none.
bool qpruner_tokenizers_token_to_id(const qpruner_tokenizers* tokenizer, const char* token,
                                    size_t size, int64_t* out, qpruner_tokenizers_bytes* error);

void qpruner_tokenizers_free_bytes(qpruner_tokenizers_bytes bytes);
void qpruner_tokenizers_free_ids(qpruner_tokenizers_ids ids);

}  // extern "C"

#endif  // QPRUNER_WORKER_ENGINE_TOKENIZER_TOKENIZERS_C_H_
