// fork() after threads were used. A child has none of its parent's threads but the one that forked, whose OpenMP pool it
// inherits as a list of threads that are not there: the child's first parallel region would wait for them for ever.
//
// So the pool of the thread that forks is given up before the fork (omp_pause_resource_all, OpenMP 5.0); parent and child
// each start a new one at their next parallel region. A fork from within a parallel region keeps the pool: there the child
// may only exec. Whoever includes this registers it; once a process is enough.
#pragma once

namespace kf {

// Whether the handler is registered; at the first call, registers it.
bool threads_survive_fork();

// In a header, so that the linker cannot leave the registration out where a file with parallel regions is linked.
inline const bool kThreadsSurviveFork = threads_survive_fork();

}  // namespace kf
