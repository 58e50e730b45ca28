// What a job may ask for: the one list behind validation and ListCapabilities.
#ifndef QPRUNER_SERVER_VALIDATION_CAPABILITIES_H_
#define QPRUNER_SERVER_VALIDATION_CAPABILITIES_H_

#include <array>

#include "qpruner/v1/spec.pb.h"

namespace qpruner::server {

inline constexpr std::array<int, 8> kCandidateBits = {2, 3, 4, 5, 6, 7, 8, 16};
inline constexpr std::array<int, 3> kGroupSizes = {32, 64, 128};

inline constexpr std::array<v1::Quantization::FourBit, 3> kFourBitFormats = {
    v1::Quantization::NF4, v1::Quantization::INT4_GROUP, v1::Quantization::FP4};
inline constexpr std::array<v1::Quantization::EightBit, 3> kEightBitFormats = {
    v1::Quantization::INT8_ROW, v1::Quantization::NF8, v1::Quantization::INT8_GROUP};
inline constexpr std::array<v1::Quantization::LowBit, 2> kLowBitFormats = {
    v1::Quantization::NORMAL_FLOAT, v1::Quantization::INTEGER_GROUP};

inline constexpr std::array<v1::Pruning::Importance, 7> kImportances = {
    v1::Pruning::L1,           v1::Pruning::L2,
    v1::Pruning::TAYLOR_FIRST, v1::Pruning::TAYLOR_SECOND,
    v1::Pruning::TAYLOR_MIXED, v1::Pruning::TAYLOR_VECTOR,
    v1::Pruning::RANDOM};

inline constexpr std::array<v1::Search::Algorithm, 5> kAlgorithms = {
    v1::Search::BAYESIAN, v1::Search::SENSITIVITY_LP, v1::Search::MUTUAL_INFORMATION,
    v1::Search::RANDOM, v1::Search::UNIFORM};

// Values of config.json "model_type" that the engine's decoder covers.
inline constexpr std::array<const char*, 4> kModelTypes = {"llama", "mistral", "qwen2", "qwen3"};

// Of models; texts are builtin or file.
inline constexpr std::array<const char*, 5> kUriSchemes = {"builtin", "file", "hf", "s3",
                                                           "artifact"};
// What is shipped with QPruner (data/models, data/corpus).
inline constexpr std::array<const char*, 1> kBuiltinModels = {"stories260k"};
inline constexpr std::array<const char*, 1> kBuiltinTexts = {"tinystories"};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_VALIDATION_CAPABILITIES_H_
