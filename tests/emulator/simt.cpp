// The scheduler: which thread runs, and how a grid comes to its end.
#include "simt.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>

#include "race.h"
#include "simt_internal.h"

namespace simt {

Thread* running = nullptr;
Machine machine;
Random random_choice(0);

std::string name_of(Site site) {
  const char* const slash = strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string name_of(const Fiber& fiber) {
  return "block " + std::to_string(fiber.block_index.x) + " thread " + std::to_string(fiber.thread_index.x);
}

namespace {

// The threads that can run.
class ReadyList {
 public:
  void begin(size_t threads, Schedule schedule) {
    size_t capacity = 1;
    while (capacity < threads) capacity *= 2;
    ring_.resize(capacity);
    head_ = count_ = 0;
    order_ = schedule.order;
  }
  // Of 32 choices in a random order, how many take the thread that became ready last: with none of them all threads
  // advance at the same speed, with nearly all a few run far ahead of the others. Both find defects.
  void set_eagerness(uint32_t eagerness) { eagerness_ = eagerness; }

  void add(uint32_t fiber) { at(count_++) = fiber; }
  bool empty() const { return count_ == 0; }
  uint32_t take() {
    if (order_ == Order::kForward) {
      const uint32_t first = at(0);
      ++head_;
      --count_;
      return first;
    }
    if (order_ == Order::kRandom && random_choice.below(32) >= eagerness_)
      std::swap(at(random_choice.below(static_cast<uint32_t>(count_))), at(count_ - 1));
    return at(--count_);
  }

 private:
  uint32_t& at(size_t place) { return ring_[(head_ + place) & (ring_.size() - 1)]; }

  std::vector<uint32_t> ring_;
  size_t head_ = 0, count_ = 0;
  Order order_ = Order::kForward;
  uint32_t eagerness_ = 0;
};

ReadyList ready;

}  // namespace

void make_ready(Fiber& fiber) {
  fiber.state = State::kReady;
  ready.add(fiber.number);
}

void stop(const std::string& message) {
  Context& from = current().context;
  machine.error = message;
  running = nullptr;
  switch_context(from, machine.host);
  abort();  // nobody continues a stopped thread
}

namespace {

const char* waiting_in(State state) {
  switch (state) {
    case State::kInWarpOperation:
      return "a warp operation";
    case State::kAtBarrier:
      return "__syncthreads";
    default:
      return "a cluster barrier";
  }
}

[[noreturn]] void report_deadlock() {
  std::map<std::string, std::pair<const Fiber*, uint32_t>> waiting;
  for (const Fiber& fiber : machine.fibers) {
    if (fiber.state == State::kEnded) continue;
    auto& group = waiting[std::string(waiting_in(fiber.state)) + " at " + name_of(fiber.site)];
    if (group.second++ == 0) group.first = &fiber;
  }
  std::string message = "deadlock:";
  for (const auto& [place, group] : waiting)
    message += (message.back() == ':' ? " " : "; ") + std::to_string(group.second) + " threads wait in " + place +
               ", the first of them " + name_of(*group.first);
  stop(message);
}

}  // namespace

// Hands over to a thread that can run, once the running one has said what it waits for.
void hand_over() {
  Fiber& from = current();
  const bool ends = from.state == State::kEnded;
  if (ready.empty()) {
    if (machine.live > 0) report_deadlock();
    running = nullptr;
    switch_context(from.context, machine.host, ends);
    return;
  }
  Fiber& to = machine.fibers[ready.take()];
  if (&to == &from) return;
  running = &to;
  switch_context(from.context, to.context, ends);
}

namespace {

void run_thread() {
  (*machine.kernel)();
  Fiber& fiber = current();
  Block& block = *fiber.block;
  fiber.state = State::kEnded;
  --machine.live;
  --block.cluster->live;
  if (--block.live == 0) end_block(block);
  // Threads that have ended are not waited for.
  if (block.arrived > 0 && block.arrived == block.live) complete_barrier(block);
  complete_cluster_barrier(*block.cluster);
  hand_over();
}

void start_clusters(const std::vector<uint32_t>& numbers) {
  const Launch& launch = *machine.launch;
  const auto clusters = static_cast<uint32_t>(numbers.size());
  const uint32_t per_cluster = launch.cluster * launch.threads, threads = clusters * per_cluster;
  machine.clusters.assign(clusters, Cluster{});
  machine.blocks.assign(clusters * launch.cluster, Block{});
  machine.warps.assign(threads / kLanes, Warp{});
  machine.fibers.resize(threads);
  machine.live = threads;
  ready.begin(threads, launch.schedule);
  for (uint32_t i = 0; i < clusters; ++i) machine.clusters[i] = {numbers[i], per_cluster, 0, 0};
  for (uint32_t slot = 0; slot < machine.blocks.size(); ++slot) {
    Cluster& cluster = machine.clusters[slot / launch.cluster];
    Block& block = machine.blocks[slot];
    block.cluster = &cluster;
    block.number = cluster.number * launch.cluster + slot % launch.cluster;
    block.slot = slot;
    block.live = launch.threads;
  }
  for (uint32_t number = 0; number < threads; ++number) {
    Fiber& fiber = machine.fibers[number];
    Block& block = machine.blocks[number / launch.threads];
    static_cast<Thread&>(fiber) = {{number % launch.threads},   {block.number}, {launch.threads}, {launch.blocks},
                                   block.slot % launch.cluster, launch.cluster};
    fiber.block = &block;
    fiber.warp = &machine.warps[number / kLanes];
    fiber.number = number;
    fiber.lane = number % kLanes;
    fiber.arrived = false;
    fiber.arrivals = fiber.waits = 0;
    fiber.site = {"(start)", 0};
    fiber.warp_epoch = 1;
    if constexpr (race::kEnabled) memset(fiber.known_warp_epoch, 0, sizeof(fiber.known_warp_epoch));
    machine.stacks.clean(number, false);
    prepare(fiber.context, machine.stacks.bottom(number), machine.stacks.bytes(number), run_thread);
    make_ready(fiber);
  }
  if constexpr (race::kEnabled) race::begin_blocks();
}

void run_clusters(const std::vector<uint32_t>& numbers) {
  start_clusters(numbers);
  Fiber& first = machine.fibers[ready.take()];
  running = &first;
  machine.host.stack = nullptr;
  switch_context(machine.host, first.context);
  if (machine.error.empty()) return;
  for (const Fiber& fiber : machine.fibers) machine.stacks.clean(fiber.number, true);
  if constexpr (!race::kEnabled)
    for (const Block& block : machine.blocks)
      for (char* memory : block.memory) free(memory);
}

std::vector<uint32_t> order_of(uint32_t count, Order order) {
  std::vector<uint32_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0u);
  if (order == Order::kReverse) std::reverse(numbers.begin(), numbers.end());
  if (order == Order::kRandom)
    for (uint32_t i = count; i > 1; --i) std::swap(numbers[i - 1], numbers[random_choice.below(i)]);
  return numbers;
}

std::string name_of(Schedule schedule) {
  const char* const names[] = {"forward", "reverse", "random"};
  return std::string(names[static_cast<int>(schedule.order)]) + ", seed " + std::to_string(schedule.seed);
}

}  // namespace

void launch(const Launch& launch, const std::function<void()>& kernel) {
  if (launch.threads == 0 || launch.threads % kLanes || launch.threads > 1024)
    throw std::invalid_argument("a block has 32 to 1024 threads, in whole warps; got " +
                                std::to_string(launch.threads));
  if (launch.cluster == 0 || launch.cluster > 16 || launch.blocks % launch.cluster || launch.in_flight == 0)
    throw std::invalid_argument("a grid of " + std::to_string(launch.blocks) + " blocks in clusters of " +
                                std::to_string(launch.cluster));
  random_choice = Random(launch.schedule.seed);
  constexpr uint32_t kEagerness[] = {0, 16, 31};
  ready.set_eagerness(kEagerness[random_choice.below(3)]);
  machine.launch = &launch;
  machine.kernel = &kernel;
  machine.declared.clear();
  machine.static_shared_bytes = 0;
  machine.error.clear();
  const uint32_t in_flight = std::min(launch.in_flight, launch.blocks / launch.cluster);
  machine.stacks.reserve(size_t{in_flight} * launch.cluster * launch.threads);
  if constexpr (race::kEnabled) race::begin_launch();
  const std::vector<uint32_t> numbers = order_of(launch.blocks / launch.cluster, launch.schedule.order);
  for (size_t i = 0; i < numbers.size() && machine.error.empty(); i += in_flight) {
    const auto begin = numbers.begin() + static_cast<std::ptrdiff_t>(i);
    std::vector<uint32_t> together(
        begin, begin + static_cast<std::ptrdiff_t>(std::min<size_t>(in_flight, numbers.size() - i)));
    // Of those in flight, a reverse schedule starts with the last.
    if (launch.schedule.order == Order::kReverse) std::reverse(together.begin(), together.end());
    run_clusters(together);
  }
  if (!machine.error.empty()) throw Error(machine.error + " [" + name_of(launch.schedule) + "]");
}

void fail(Site site, const std::string& message) {
  stop(message + ": " + name_of(current()) + " at " + name_of(site));
}

}  // namespace simt
