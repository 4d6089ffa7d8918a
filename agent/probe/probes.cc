// SPDX-License-Identifier: Apache-2.0
//
// The list of all rows, and one run of it.
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/base/status.h"
#include "agent/base/unique_fd.h"
#include "agent/probe/capability.h"
#include "agent/probe/lab.h"
#include "agent/probe/probe.h"
#include "agent/probe/row.h"
#include "agent/probe/tiny_program.h"

namespace shunt {
namespace {

using std::chrono::milliseconds;

// Enough that no row waits for another's bound, few enough for two CPUs.
constexpr size_t kWorkers = 4;

struct Registered {
  const char* family;
  Row row;
};

const std::vector<Registered>& Rows() {
  static const auto* rows = [] {
    const std::pair<const char*, std::vector<Row>> families[] = {
        {"engine", EngineRows()}, {"hazard", HazardRows()},   {"hazard", RaceRows()},
        {"fix", FixRows()},       {"feature", FeatureRows()}, {"environment", EnvironmentRows()},
    };
    auto* all = new std::vector<Registered>;
    for (const auto& [family, list] : families) {
      for (const Row& row : list) {
        all->push_back({family, row});
      }
    }
    // As docs/hazards.md lists them; those it does not list come last.
    const auto number = [](const Registered& registered) {
      int hazard = 1000;
      sscanf(registered.row.about, "hazard %d", &hazard);
      return hazard;
    };
    const auto is_hazard = [](const Registered& registered) {
      return std::string_view(registered.family) == "hazard";
    };
    const auto begin = std::find_if(all->begin(), all->end(), is_hazard);
    const auto end = std::find_if_not(begin, all->end(), is_hazard);
    std::stable_sort(begin, end, [&](const Registered& a, const Registered& b) {
      return number(a) < number(b);
    });
    return all;
  }();
  return *rows;
}

void Judge(const Row& row, const Finding& finding, ProbeView* view) {
  switch (finding.found) {
    case Found::kAsWanted:
      view->verdict = kProbeOk;
      view->means = row.means_as_wanted;
      view->to_do = "nothing";
      return;
    case Found::kOtherwise:
      view->verdict = row.otherwise;
      view->means = row.means_otherwise;
      view->to_do = row.to_do;
      return;
    case Found::kNotHere:
      view->verdict = kProbeSkipped;
      view->means = "could not be tried here, and decides nothing";
      view->to_do = "nothing; what happened says what it would need";
      return;
    case Found::kUnknown:
      view->verdict = kProbeUnknown;
      view->means = absl::StrCat("not seen; if it happens: ", row.means_otherwise);
      view->to_do = row.to_do;
      return;
    case Found::kFailed:
      break;
  }
  // What decides must be known: in doubt, plain TCP.
  const bool decides = std::string_view(row.otherwise) == kProbeFatal;
  view->verdict = decides ? kProbeFatal : kProbeUnknown;
  view->means = "could not be found out";
  view->to_do = "see what happened; if it does not explain itself, report it";
}

ProbeView View(const Registered& registered, const Finding& finding) {
  ProbeView view;
  view.name = registered.row.name;
  view.family = registered.family;
  view.about = registered.row.about;
  view.tried = registered.row.tried;
  view.happened = finding.happened;
  Judge(registered.row, finding, &view);
  if (!finding.means.empty()) {
    view.means = finding.means;
  }
  if (!finding.to_do.empty()) {
    view.to_do = finding.to_do;
  }
  return view;
}

// ---- loading the instrument ------------------------------------------------

ProbeView LoadedView(const absl::Status& status, bool scratch_netns) {
  ProbeView view;
  view.name = "programs_load";
  view.family = "engine";
  view.tried = "loading sk_msg, sock_ops and iterator programs with all that the engine's own need";
  if (status.ok()) {
    view.verdict = kProbeOk;
    view.happened = scratch_netns
                        ? "loaded; sockets are tried in a scratch network namespace"
                        : "loaded; sockets are tried on the loopback of this process's own "
                          "network namespace: no capability for a scratch one";
    view.means = "the portable engine can be loaded";
    view.to_do = "nothing";
    return view;
  }
  view.verdict = kProbeFatal;
  view.happened = std::string(status.message());
  view.means = "the portable engine cannot be loaded";
  const std::vector<std::string> missing = MissingCapabilities();
  const std::vector<std::string> lockdown = WordsOf("/sys/kernel/security/lockdown");
  if (!missing.empty()) {
    absl::StrAppend(&view.happened, "; missing: ", absl::StrJoin(missing, ", "));
    view.to_do = absl::StrCat("give the agent ", absl::StrJoin(missing, ", "),
                              " (in a container: securityContext.capabilities.add)");
  } else if (std::find(lockdown.begin(), lockdown.end(), "[confidentiality]") != lockdown.end()) {
    view.to_do =
        "boot without lockdown=confidentiality, which forbids programs to read kernel memory";
  } else if (absl::IsPermissionDenied(status)) {
    view.to_do =
        "all capabilities are there: see whether a security module or the container's seccomp "
        "profile forbids bpf()";
  } else {
    view.to_do = "use kernel 5.15 or later, or the kernel module";
  }
  return view;
}

// ---- one run -----------------------------------------------------------------

bool BringLoopbackUp() {
  const UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request = {};
  strncpy(request.ifr_name, "lo", IFNAMSIZ - 1);
  request.ifr_flags = IFF_UP;
  return fd.valid() && ioctl(fd.get(), SIOCSIFFLAGS, &request) == 0;
}

Finding Try(const Row& row, const ProbeContext& context) {
  try {
    return row.find(context);
  } catch (const std::system_error& error) {
    return {Found::kFailed, absl::StrCat("starting a thread: ", error.what())};
  }
}

class Run {
 public:
  Run(ProbeScope scope, const ProbeContext& context) : context_(context) {
    for (const Registered& registered : Rows()) {
      if (registered.row.scope == ProbeScope::kEssential || scope == ProbeScope::kAll) {
        rows_.push_back(&registered);
      }
    }
    views_.resize(rows_.size());
  }

  // What measures time comes last, one at a time.
  std::vector<ProbeView> All() {
    std::vector<std::thread> workers;
    try {
      for (size_t i = 1; i < kWorkers; ++i) {
        workers.emplace_back([this] { Work(); });
      }
    } catch (const std::system_error&) {
      // No more threads for us: those there are do it all.
    }
    Work();
    for (std::thread& worker : workers) {
      worker.join();
    }
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (rows_[i]->row.alone) {
        TryRow(i);
      }
    }
    return std::move(views_);
  }

 private:
  void Work() {
    for (size_t i = next_++; i < rows_.size(); i = next_++) {
      if (!rows_[i]->row.alone) {
        TryRow(i);
      }
    }
  }

  void TryRow(size_t i) {
    const Registered& registered = *rows_[i];
    if (registered.row.needs_lab && context_.lab == nullptr) {
      Finding finding = {Found::kNotHere, "not tried: programs_load failed"};
      finding.means = "could not be found out";
      views_[i] = View(registered, finding);
      return;
    }
    views_[i] = View(registered, Try(registered.row, context_));
    // A busy machine is not a broken kernel: what would decide against the
    // engine is tried again, while there is time.
    if (views_[i].verdict == kProbeFatal && retry_.Left() > 0) {
      views_[i] = View(registered, Try(registered.row, context_));
    }
  }

  const ProbeContext& context_;
  std::vector<const Registered*> rows_;
  std::vector<ProbeView> views_;  // each written by one thread
  std::atomic<size_t> next_ = 0;
  const Bound retry_{milliseconds(1000)};
};

// On the thread whose network namespace may be replaced; the workers inherit
// it from here.
void RunHere(const ProbeOptions& options, ProbeReport* report) {
  // Without CAP_NET_ADMIN its loopback could not be brought up.
  report->scratch_netns = Holds(CAP_NET_ADMIN) && unshare(CLONE_NEWNET) == 0 && BringLoopbackUp();

  const absl::StatusOr<std::unique_ptr<Lab>> lab = Lab::Create();
  const KernelTypes types;
  const ProbeContext context = {lab.ok() ? lab->get() : nullptr, &options, &types};
  report->rows = Run(options.scope, context).All();
  report->rows.insert(report->rows.begin(), LoadedView(lab.status(), report->scratch_netns));
  const ProbeView* charged = report->Find("rmem_is_charged");
  report->rmem_is_charged = charged != nullptr && charged->verdict == kProbeOk;
}

}  // namespace

const ProbeView* ProbeReport::Find(std::string_view name) const {
  const auto found = std::find_if(rows.begin(), rows.end(),
                                  [&](const ProbeView& row) { return row.name == name; });
  return found == rows.end() ? nullptr : &*found;
}

absl::StatusOr<ProbeReport> RunProbes(const ProbeOptions& options) {
  ProbeReport report;
  try {
    std::thread([&] { RunHere(options, &report); }).join();
  } catch (const std::system_error& error) {
    return ErrnoStatus(error.code().value(), "probing the kernel: starting a thread");
  }
  return report;
}

absl::StatusOr<ProbeReport> RunProbes(ProbeScope scope) {
  ProbeOptions options;
  options.scope = scope;
  return RunProbes(options);
}

}  // namespace shunt
