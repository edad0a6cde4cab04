// Law section 0, worked out: which tokens of a row are edited, and to what. A row costs its entries and the clearing
// of its bits, not its vocabulary.
#include <cstring>
#include <vector>

#include "rows.h"

namespace fastsample::cpu {

namespace {

float logit_at(const RowView& view, int64_t token) {
  const char* data = static_cast<const char*>(view.data);
  if (view.dtype == DType::kFloat32) {
    float x;
    memcpy(&x, data + token * view.stride * 4, sizeof(x));
    return x;
  }
  uint16_t half;
  memcpy(&half, data + token * view.stride * 2, sizeof(half));
  return view.dtype == DType::kFloat16 ? widen_float16(half) : bits_float(static_cast<uint32_t>(half) << 16);
}

// A part [begin, end) of something, inside it; `outside` where it was asked to begin or end elsewhere.
struct Range {
  int64_t begin;
  int64_t end;
  bool outside;

  static Range of(int64_t begin, int64_t end, int64_t size) {
    const Range range{clamped(begin, size), clamped(end, size), false};
    return {range.begin, range.end, range.begin != begin || range.end != end || range.begin > range.end};
  }
  static Range number(const int64_t* offsets, int64_t stride, int64_t number, int64_t size) {
    return of(offsets[number * stride], offsets[(number + 1) * stride], size);
  }

 private:
  static int64_t clamped(int64_t value, int64_t size) { return value < 0 ? 0 : value > size ? size : value; }
};

// The prompt or the output of a row.
struct RowHistory {
  const int64_t* tokens;
  int64_t stride;
  int64_t listed;  // tokens that are there
  int64_t length;  // tokens that count: as many, or those of a request that keeps no list
  bool outside;

  RowHistory(const Histories& histories, int64_t row)
      : tokens(histories.tokens.data ? histories.tokens.row(row) : nullptr), stride(histories.tokens.stride) {
    const bool has_list = tokens != nullptr;
    length = histories.lengths ? histories.lengths[row * histories.lengths_stride]
             : has_list        ? histories.tokens.columns
                               : 0;
    const int64_t largest = has_list ? histories.tokens.columns : INT64_MAX;
    const Range range = Range::of(0, length, largest);
    outside = range.outside;
    length = range.end;
    listed = has_list ? length : 0;
  }
  int64_t operator[](int64_t place) const { return tokens[place * stride]; }
};

// One row's edits. They are gone through twice, first to mark the tokens and then, each with a place among them, to
// say what is known of them.
class Finder {
 public:
  Finder(const FindEdits& call, int64_t row)
      : given_(call.adjustments),
        row_(row),
        vocab_(call.batch.vocab),
        penalties_{given_.repetition_penalty[row], given_.presence_penalty[row], given_.frequency_penalty[row]},
        prompt_(given_.prompt, row),
        output_(given_.output, row),
        found_(call.found),
        bits_(found_.bits + row * found_.words),
        before_(found_.before + row * found_.words),
        values_(found_.values + row * found_.capacity) {}

  // `from` is null where the logits row does not exist.
  void find(const RowView* from, std::vector<Edit>& edits) {
    memset(bits_, 0, static_cast<size_t>(found_.words) * sizeof(int32_t));
    int32_t& status = found_.status[row_];
    status = 0;
    const bool valid = penalties_.valid();
    ignored_ = prompt_.outside || output_.outside;
    if (from && valid)
      for_each_entry([&](int64_t token) -> Edit& {
        bits_[token >> 5] = static_cast<int32_t>(static_cast<uint32_t>(bits_[token >> 5]) | 1u << (token & 31));
        return nothing_;
      });
    else if (from)
      bits_[0] = 1;
    const int32_t count = count_before();
    if (!from) return;
    status = !valid ? kInvalidPenalty : ignored_ ? kEntriesIgnored : 0;
    if (!valid) {
      values_[0] = __builtin_nanf("");
      return;
    }
    edits.assign(static_cast<size_t>(count), Edit{});
    for_each_entry([&](int64_t token) -> Edit& { return edits[static_cast<size_t>(place_of(token))]; });
    write(*from, edits);
  }

 private:
  // Calls at(token) for each token that is edited and adds to the Edit that it returns.
  template <class At>
  void for_each_entry(const At& at) {
    const auto edit = [&](int64_t token, const auto& change) {
      if (token >= 0 && token < vocab_)
        change(at(token));
      else
        ignored_ = true;
    };
    const auto ban = [](Edit& known) { known.banned = true; };
    if (penalties_.look_at_prompt()) {
      const auto in_prompt = [](Edit& known) { known.in_history = true; };
      if (given_.prompt_mask.data) {
        const int32_t* mask = given_.prompt_mask.row(row_);
        for (int64_t word = 0; word < found_.words; ++word) {
          uint32_t marked = static_cast<uint32_t>(mask[word * given_.prompt_mask.stride]);
          if (word == found_.words - 1 && vocab_ % 32 != 0) marked &= (1u << vocab_ % 32) - 1;
          for (; marked; marked &= marked - 1) edit((word << 5) + __builtin_ctz(marked), in_prompt);
        }
      } else {
        for (int64_t i = 0; i < prompt_.listed; ++i) edit(prompt_[i], in_prompt);
      }
    }
    if (penalties_.look_at_output()) {
      const auto in_output = [](int64_t times) {
        return [times](Edit& known) {
          known.in_history = true;
          known.count += times;
        };
      };
      if (given_.output_counts.data) {
        const int32_t* counts = given_.output_counts.row(row_);
        const int64_t stride = given_.output_counts.stride;
        // Nearly all blocks hold no token of the output, which is seen without a branch for each token.
        constexpr int64_t kBlock = 16;
        for (int64_t begin = 0; begin < vocab_; begin += kBlock) {
          const int64_t end = begin + kBlock < vocab_ ? begin + kBlock : vocab_;
          bool any = true;
          if (stride == 1 && end - begin == kBlock) {
            int32_t above = 0;
            for (int64_t i = 0; i < kBlock; ++i) above |= counts[begin + i] > 0;
            any = above != 0;
          }
          for (int64_t token = begin; any && token < end; ++token)
            if (counts[token * stride] > 0) edit(token, in_output(counts[token * stride]));
        }
      } else {
        for (int64_t i = 0; i < output_.listed; ++i) edit(output_[i], in_output(1));
      }
    }
    const Bias& bias = given_.bias;
    for_each_of(bias.entries, [&](int64_t i, int64_t token) {
      edit(token, [&](Edit& known) {
        known.has_bias = true;
        known.bias = bias.values[i * bias.values_stride];
      });
    });
    if (given_.stop_tokens.tokens) {
      const bool too_short = output_.length < given_.min_tokens[row_];
      for_each_of(given_.stop_tokens, [&](int64_t, int64_t token) {
        if (too_short) edit(token, ban);
      });
    }
    for_each_bad_word([&](int64_t token) { edit(token, ban); });
  }

  template <class Body>
  void for_each_of(const Csr& lists, const Body& body) {
    if (!lists.tokens) return;
    const Range mine = Range::number(lists.offsets, lists.offsets_stride, row_, lists.count);
    ignored_ = ignored_ || mine.outside;
    for (int64_t i = mine.begin; i < mine.end; ++i) body(i, lists.tokens[i * lists.stride]);
  }

  // Calls ban(token) for the last token of each word whose others end the history.
  template <class Ban>
  void for_each_bad_word(const Ban& ban) {
    const BadWords& bad = given_.bad_words;
    if (!bad.words.tokens) return;
    const Range mine = Range::number(bad.rows, bad.rows_stride, row_, bad.number);
    ignored_ = ignored_ || mine.outside;
    const int64_t in_prompt = bad.in_prompt ? prompt_.listed : 0;
    const int64_t length = in_prompt + output_.listed;
    for (int64_t number = mine.begin; number < mine.end; ++number) {
      const Range word = Range::number(bad.words.offsets, bad.words.offsets_stride, number, bad.words.count);
      const int64_t others = word.end - word.begin - 1;
      ignored_ = ignored_ || word.outside || others < 0;
      bool matches = !word.outside && others >= 0 && others <= length;
      for (int64_t i = 0; matches && i < others; ++i) {
        const int64_t place = length - others + i;
        matches = bad.words.tokens[(word.begin + i) * bad.words.stride] ==
                  (place < in_prompt ? prompt_[place] : output_[place - in_prompt]);
      }
      if (matches) ban(bad.words.tokens[(word.end - 1) * bad.words.stride]);
    }
  }

  int32_t count_before() {
    int32_t count = 0;
    for (int64_t word = 0; word < found_.words; ++word) {
      before_[word] = count;
      if (bits_[word]) count += __builtin_popcount(static_cast<uint32_t>(bits_[word]));
    }
    return count;
  }
  int64_t place_of(int64_t token) const {
    const int64_t word = token >> 5;
    return before_[word] + bits_below(static_cast<uint32_t>(bits_[word]), static_cast<uint32_t>(token & 31));
  }

  void write(const RowView& from, std::vector<Edit>& edits) {
    const RowEdits masked{
        given_.allowed.data ? given_.allowed.row(row_) : nullptr, given_.allowed.stride, nullptr, nullptr, nullptr, 0};
    for (int64_t word = 0, place = 0; word < found_.words; ++word)
      for (uint32_t left = static_cast<uint32_t>(bits_[word]); left; left &= left - 1, ++place) {
        const int bit = __builtin_ctz(left);
        Edit& edit = edits[static_cast<size_t>(place)];
        edit.banned = edit.banned || !(masked.allowed_word(word) >> bit & 1);
        values_[place] = edited_logit(logit_at(from, (word << 5) + bit), penalties_, edit);
      }
  }

  const Adjustments& given_;
  const int64_t row_;
  const int64_t vocab_;
  const Penalties penalties_;
  const RowHistory prompt_;
  const RowHistory output_;
  const FoundEdits& found_;
  int32_t* const bits_;
  int32_t* const before_;
  float* const values_;
  bool ignored_ = false;
  Edit nothing_{};
};

}  // namespace

void find_edits(const FindEdits& call, const Threads& threads) {
  // Rows are not split, so that each has a thread of its own.
  constexpr int64_t kNeverSplit = 1;
  for_each_row(call.rows, kNeverSplit, false, threads, [&](int64_t row, RowScratch&, const Team&) {
    static thread_local std::vector<Edit> edits;
    const int64_t from = call.indices[row];
    const bool exists = from >= 0 && from < call.batch.rows;
    const RowView view = exists ? row_of(call.batch, from) : RowView{};
    Finder(call, row).find(exists ? &view : nullptr, edits);
  });
}

}  // namespace fastsample::cpu
