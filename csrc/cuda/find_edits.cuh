// The kernel of find_edits (law section 0): a block turns the lists of a row into its edits.
//
// Each entry is visited twice: once to set its token's bit, and, when the number of edits before each word is known and
// with it every edit's place, once to say there what it says of the token. Nothing depends on who comes first: bits are
// or'ed, counts added, and of a token's biases the last entry is the largest number.
#pragma once

#include "../requests.h"
#include "group.cuh"
#include "load_edited.cuh"

namespace fastsample::cuda {

// What an edit's place in `values` holds until its value does.
constexpr uint32_t kInPrompt = 1, kBanned = 2, kOneInOutput = 4;

// A number from outside [0, largest] is brought into it, and noticed.
__device__ __forceinline__ int64_t clamped(int64_t value, int64_t largest, bool& outside) {
  outside |= value < 0 || value > largest;
  return value < 0 ? 0 : value > largest ? largest : value;
}

struct Span {
  int64_t begin;
  int64_t end;
};

// The entries of row number `row`, of `count`.
__device__ __forceinline__ Span entries_of(const int64_t* offsets, int64_t stride, int64_t row, int64_t count,
                                           bool& ignored) {
  const int64_t begin = clamped(offsets[row * stride], count, ignored);
  const int64_t end = clamped(offsets[(row + 1) * stride], count, ignored);
  ignored |= begin > end;
  return {begin, end};
}

struct TokenHistory {
  const int64_t* tokens;
  int64_t stride;
  int64_t listed;  // how many are in `tokens`
  int64_t length;  // which may be known alone

  __device__ TokenHistory(const Histories& histories, int64_t row, bool& ignored) : tokens(nullptr), stride(0) {
    const RowsOf<const int64_t>& matrix = histories.tokens;
    length = histories.lengths ? histories.lengths[row * histories.lengths_stride] : matrix.data ? matrix.columns : 0;
    length = clamped(length, matrix.data ? matrix.columns : INT64_MAX, ignored);
    listed = matrix.data ? length : 0;
    if (!matrix.data) return;
    tokens = matrix.row(row);
    stride = matrix.stride;
  }

  __device__ int64_t operator[](int64_t place) const { return tokens[place * stride]; }
};

enum class Mark { kInPrompt, kInOutput, kBanned, kBias };

// The lists of one row, as a thread of its block goes through them.
struct EntriesOfRow {
  const Adjustments& adjustments;
  const Penalties& penalties;
  int64_t row;
  uint32_t vocab;
  bool& ignored;

  // Calls visit(token, mark, entry) for this thread's share of the entries, and notices those outside the vocabulary.
  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& visit) const {
    const TokenHistory prompt(adjustments.prompt, row, ignored), output(adjustments.output, row, ignored);
    const auto mark = [&](int64_t token, Mark kind, int64_t entry) {
      if (token >= 0 && token < vocab)
        visit(static_cast<uint32_t>(token), kind, static_cast<uint32_t>(entry));
      else
        ignored = true;
    };
    if (penalties.look_at_prompt() && !adjustments.prompt_mask.data)
      for_each({0, prompt.listed}, [&](int64_t i) { mark(prompt[i], Mark::kInPrompt, 0); });
    if (penalties.look_at_output() && !adjustments.output_counts.data)
      for_each({0, output.listed}, [&](int64_t i) { mark(output[i], Mark::kInOutput, 0); });
    const Csr& biased = adjustments.bias.entries;
    if (biased.tokens)
      for_each(entries_of(biased.offsets, biased.offsets_stride, row, biased.count, ignored),
               [&](int64_t i) { mark(biased.tokens[i * biased.stride], Mark::kBias, i); });
    const Csr& stops = adjustments.stop_tokens;
    if (stops.tokens) {
      const Span span = entries_of(stops.offsets, stops.offsets_stride, row, stops.count, ignored);
      if (output.length < adjustments.min_tokens[row])
        for_each(span, [&](int64_t i) { mark(stops.tokens[i * stops.stride], Mark::kBanned, 0); });
    }
    const BadWords& bad = adjustments.bad_words;
    if (bad.words.tokens)
      for_each(entries_of(bad.rows, bad.rows_stride, row, bad.number, ignored), [&](int64_t number) {
        if (const Span word = word_at(number); ends_history(word, prompt, output))
          mark(bad.words.tokens[(word.end - 1) * bad.words.stride], Mark::kBanned, 0);
      });
  }

 private:
  // Four at a time, so that the loads of one entry do not wait for another's.
  template <class Body>
  static __device__ __forceinline__ void for_each(const Span& span, const Body& body) {
#pragma unroll 4
    for (int64_t i = span.begin + threadIdx.x; i < span.end; i += kRowThreads) body(i);
  }

  // Empty where its offsets are none.
  __device__ Span word_at(int64_t number) const {
    const Csr& words = adjustments.bad_words.words;
    bool broken = false;
    const Span word = entries_of(words.offsets, words.offsets_stride, number, words.count, broken);
    if (broken || word.begin == word.end) {
      ignored = true;
      return {0, 0};
    }
    return word;
  }

  // Do the word's tokens but the last end the history?
  __device__ bool ends_history(const Span& word, const TokenHistory& prompt, const TokenHistory& output) const {
    const BadWords& bad = adjustments.bad_words;
    const int64_t before = bad.in_prompt ? prompt.listed : 0;
    const int64_t first = before + output.listed - (word.end - word.begin - 1);
    if (word.begin == word.end || first < 0) return false;
    for (int64_t i = word.begin; i < word.end - 1; ++i) {
      const int64_t place = first + i - word.begin;
      const int64_t there = place < before ? prompt[place] : output[place - before];
      if (there != bad.words.tokens[i * bad.words.stride]) return false;
    }
    return true;
  }
};

// Exclusive prefix sums of the words' bits, by a block. Returns how many there are in all.
__device__ __forceinline__ uint32_t count_before(const int32_t* bits, int32_t* before, uint32_t words,
                                                 uint32_t* of_warps) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t total = 0;
#pragma unroll 1
  for (uint32_t first = 0; first < words; first += kRowThreads) {
    const uint32_t word = first + threadIdx.x;
    const auto mine = static_cast<uint32_t>(word < words ? __popc(static_cast<uint32_t>(bits[word])) : 0);
    const uint32_t running = warp_scan(mine, lane);
    __syncthreads();  // of_warps is no longer read
    if (lane == 31) of_warps[warp] = running;
    __syncthreads();
    const uint32_t of_all = warp_scan(lane < kRowThreads / 32 ? of_warps[lane] : 0, lane);
    const uint32_t earlier = warp > 0 ? __shfl_sync(kAllLanes, of_all, static_cast<int>(warp - 1)) : 0;
    if (word < words) before[word] = static_cast<int32_t>(total + earlier + running - mine);
    total += __shfl_sync(kAllLanes, of_all, 31);
  }
  return total;
}

// `last_bias`: for each edit, its token's last bias entry + 1; null where there are no biases.
__global__ void __launch_bounds__(kRowThreads, 1)
    find_edits_kernel(const __grid_constant__ FindEdits call, uint32_t* const last_bias) {
  SHARED_ARRAY(uint32_t, of_warps, kRowThreads / 32);
  wait_for_earlier_kernels();
  const Adjustments& adjustments = call.adjustments;
  const int64_t row = blockIdx.x, source = call.indices[row];
  const auto words = static_cast<uint32_t>(call.found.words), vocab = static_cast<uint32_t>(call.batch.vocab);
  int32_t* const bits = call.found.bits + row * words;
  int32_t* const before = call.found.before + row * words;
  float* const values = call.found.values + row * call.found.capacity;
  const Penalties penalties{adjustments.repetition_penalty[row], adjustments.presence_penalty[row],
                            adjustments.frequency_penalty[row]};
  const bool exists = source >= 0 && source < call.batch.rows;
  if (!exists || !penalties.valid()) {
#pragma unroll 1
    for (uint32_t word = threadIdx.x; word < words; word += kRowThreads) {
      bits[word] = exists && word == 0;
      before[word] = exists && word > 0;
    }
    if (threadIdx.x == 0) {
      if (exists) values[0] = __uint_as_float(0x7FC00000u);
      call.found.status[row] = exists ? kInvalidPenalty : 0;
    }
    return;
  }

  // --- which tokens
  const bool in_mask = adjustments.prompt_mask.data && penalties.look_at_prompt();
  const bool in_counts = adjustments.output_counts.data && penalties.look_at_output();
  const auto in_prompt_mask = [&](uint32_t word) {
    const RowsOf<const int32_t>& mask = adjustments.prompt_mask;
    const uint32_t inside = vocab - word * 32 >= 32 ? 0xFFFFFFFFu : (1u << (vocab - word * 32)) - 1;
    return static_cast<uint32_t>(mask.row(row)[word * mask.stride]) & inside;
  };
  const auto output_count = [&](uint32_t token) {
    const RowsOf<const int32_t>& counts = adjustments.output_counts;
    const int32_t count = counts.row(row)[token * counts.stride];
    return count > 0 ? count : 0;
  };
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll 1
  for (uint32_t word = threadIdx.x / 32; word < words; word += kRowThreads / 32) {
    uint32_t known = 0;
    if (in_counts) known = __ballot_sync(kAllLanes, word * 32 + lane < vocab && output_count(word * 32 + lane) > 0);
    if (in_mask) known |= in_prompt_mask(word);
    if (lane == 0) bits[word] = static_cast<int32_t>(known);
  }
  __syncthreads();
  bool ignored = false;
  const EntriesOfRow entries{adjustments, penalties, row, vocab, ignored};
  entries.visit([&](uint32_t token, Mark, uint32_t) {
    atomicOr(reinterpret_cast<uint32_t*>(bits) + token / 32, 1u << token % 32);
  });
  __syncthreads();
  const uint32_t edits = count_before(bits, before, words, of_warps);

  // --- what is said of each
  uint32_t* const marks = reinterpret_cast<uint32_t*>(values);
  uint32_t* const biases = last_bias ? last_bias + row * call.found.capacity : nullptr;
#pragma unroll 1
  for (uint32_t edit = threadIdx.x; edit < edits; edit += kRowThreads) {
    marks[edit] = 0;
    if (biases) biases[edit] = 0;
  }
  __syncthreads();
  entries.visit([&](uint32_t token, Mark mark, uint32_t entry) {
    const auto word = static_cast<uint32_t>(bits[token / 32]);
    const auto edit = static_cast<uint32_t>(before[token / 32] + bits_below(word, token % 32));
    if (mark == Mark::kBias)
      atomicMax(biases + edit, entry + 1);
    else if (mark == Mark::kInOutput)
      atomicAdd(marks + edit, kOneInOutput);
    else
      atomicOr(marks + edit, mark == Mark::kBanned ? kBanned : kInPrompt);
  });
  ignored = __syncthreads_or(ignored) != 0;
  if (threadIdx.x == 0) call.found.status[row] = ignored ? kEntriesIgnored : 0;

  // --- and what becomes of it
  const RowInMemory logits(call.batch, source, 0, 1, 0);
#pragma unroll 1
  for (uint32_t word = threadIdx.x; word < words; word += kRowThreads) {
    auto left = static_cast<uint32_t>(bits[word]);
    if (left == 0) continue;
    const RowsOf<const int32_t>& mask = adjustments.allowed;
    const uint32_t allowed = mask.data ? static_cast<uint32_t>(mask.row(row)[word * mask.stride]) : 0xFFFFFFFFu;
    const uint32_t in_prompt = in_mask ? in_prompt_mask(word) : 0;
#pragma unroll 1
    for (int32_t edit = before[word]; left; left &= left - 1, ++edit) {
      const auto bit = static_cast<uint32_t>(__ffs(static_cast<int>(left)) - 1);
      const uint32_t token = word * 32 + bit, said = marks[edit];
      const uint32_t biased = biases ? biases[edit] : 0;
      const int64_t count = in_counts ? output_count(token) : said / kOneInOutput;
      const Bias& bias = adjustments.bias;
      values[edit] = edited_logit(logits.token(token), penalties,
                                  {biased > 0, biased > 0 ? bias.values[(biased - 1) * bias.values_stride] : 0.0f,
                                   (said & kInPrompt) || (in_prompt >> bit & 1) || count > 0, count,
                                   (said & kBanned) || !(allowed >> bit & 1)});
    }
  }
}

}  // namespace fastsample::cuda
