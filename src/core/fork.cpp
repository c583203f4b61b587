#include "core/fork.h"

#include <omp.h>
#include <pthread.h>

namespace kf {

bool threads_survive_fork() {
  static const bool registered =
      pthread_atfork([] { omp_pause_resource_all(omp_pause_soft); }, nullptr, nullptr) == 0;
  return registered;
}

}  // namespace kf
