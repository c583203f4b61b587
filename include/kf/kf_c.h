/* A backend in a shared library, loaded at run time: what it gives kf and what kf gives it, in C (C99, and C++). Such a
 * plug-in needs this header and DLPack's (dlpack/dlpack.h) and links with nothing of kf: it exports two functions,
 * kf_plugin_abi_version() and kf_plugin_open(), and is given kf's by a table. docs/bring-up-a-backend.md goes through one.
 *
 * Rules of the border. Strings are UTF-8 that ends with a zero, and belong to whoever gives them. Nothing is thrown: what
 * can fail returns a kf_status, and writes the reason into the kf_reason that it is given. A plug-in stays loaded until
 * the process ends, and so do its tables. Functions are called from several threads at once. Every function of a plug-in's
 * is given back the `context` of its table or its row, which is the plug-in's own.
 *
 * Structs begin with their size, `struct_size`, filled in by whoever makes them: sizeof the struct as that header had it. Later
 * headers add members at the end only, and what is 0 there means what was so before. A plug-in of an older header leaves
 * them out, and kf takes them for 0. A plug-in of a newer header than kf's is taken as long as what it adds is 0. Of the structs
 * that kf makes, members that came after the plug-in's oldest kf are asked for by KF_HAS() first. */
#ifndef KF_KF_C_H
#define KF_KF_C_H

#include <dlpack/dlpack.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of every struct and function below. Another number is another layout or meaning of what was there, and not just more of it:
 * kf refuses a plug-in that has not its own. */
#define KF_ABI_VERSION 1

/* Whether the struct that `pointer` points to has this member: KF_HAS(host, kf_host, choice). */
#define KF_HAS(pointer, type, member) \
  ((pointer)->struct_size >= offsetof(type, member) + sizeof(((type*)0)->member))

/* 0: done. The others are the codes of kf's errors (kf/error.h). */
typedef int32_t kf_status;
enum {
  KF_OK = 0,
  KF_INVALID_ARGUMENT = 1,
  KF_RESOURCE_EXHAUSTED = 2,
  KF_UNAVAILABLE = 3,
  KF_DEADLINE_EXCEEDED = 4,
  KF_NOT_IMPLEMENTED = 5 /* of supports(): no, and the reason says why */
};

/* Memory of the caller's for a sentence: what was expected, what came. Empty before the call. */
typedef struct kf_reason {
  char text[512];
} kf_reason;

/* A call of an op: its operands and attributes, by the names that its Params struct has (kf/ops/). kf's, opaque; for the
 * time of the function that it is given to. */
typedef struct kf_call kf_call;
/* What a row's plan() made for its run(). The plug-in's, opaque to kf. */
typedef struct kf_plan kf_plan;

/* What kf gives a plug-in. Of a call a row reads the fields that it lists in kf_row.fields; asking for another is an error
 * of the row, which the call reports. */
typedef struct kf_host {
  size_t struct_size;
  const char* version; /* of kf */
  /* The operand of this name, which is kf's: its deleter is null, and memory, shape and strides are there for the time of the
   * call. Null where the call has none. Shapes and strides count elements; strides are always there. Of int4 the dtype
   * is {kDLInt, 4, 1}: two a byte, the low half first. Of GGUF's block formats it is {kDLOpaqueHandle, 8, 1}, and dtype()
   * tells which. On ascend, mlu and kunlun the device is kDLExtDev. */
  const DLManagedTensor* (*tensor)(const kf_call* call, const char* name);
  /* Its element type as kf names it: "f32", "bf16", "q4_k", ... Null where the call has no such operand. */
  const char* (*dtype)(const kf_call* call, const char* name);
  int (*boolean)(const kf_call* call, const char* name); /* 0 or 1 */
  int64_t (*integer)(const kf_call* call, const char* name);
  double (*number)(const kf_call* call, const char* name);
  const char* (*choice)(const kf_call* call, const char* name); /* of an enumeration: "silu" */
} kf_host;

/* What supports() and plan() may look at besides the call. Their operands' memory may hold anything: only weights, and only
 * where they are constant, may be read. */
typedef struct kf_plan_context {
  size_t struct_size;
  int32_t device;
  int32_t num_threads;
  /* Weights have the same memory and values at every run of the plan: they may be packed. */
  int32_t weights_are_constant;
  int32_t reserved; /* 0 */
} kf_plan_context;

/* What plan() hands over; as kf fills it in before: its size, null, 0, 1, 1. */
typedef struct kf_planned {
  size_t struct_size;
  kf_plan* plan;          /* shared by concurrent runs */
  size_t workspace_bytes; /* that run() needs on the device */
  int32_t launches;       /* kernels that one run launches */
  int32_t graph_safe;     /* as KF_ROW_GRAPH_SAFE, where it depends on the call */
} kf_planned;

typedef struct kf_run_context {
  size_t struct_size;
  /* On the device, 64-byte aligned, of the bytes that plan() asked for; null where these are 0. */
  void* workspace;
  void* stream; /* the caller's queue of the device; null: its default one */
  int32_t device;
  int32_t num_threads;
} kf_run_context;

/* kf_row.families. By default calls accept the rows of the first three; a row of several is found by each. */
enum {
  KF_FAMILY_CUSTOM = 16,
  KF_FAMILY_FUSED = 4,    /* kernels of the plug-in's own */
  KF_FAMILY_LIBRARY = 8,  /* a vendor's fused operator */
  KF_FAMILY_VANILLA = 2,  /* as an eager framework runs the op: what unfused compositions are made of */
  KF_FAMILY_REFERENCE = 1 /* plain loops */
};
/* kf_row.flags */
enum {
  KF_ROW_GRAPH_SAFE = 1,     /* run() enqueues all on its stream and decides nothing by values in tensors */
  KF_ROW_BATCH_INVARIANT = 2 /* a row of the outputs has the same bits whatever other rows come with it */
};

/* A kernel: a row of the backend's table. */
typedef struct kf_row {
  size_t struct_size;
  const char* name;      /* "toy::rms_norm": the backend's name, two colons, its own */
  const char* op;        /* "rms_norm" */
  uint32_t families;     /* KF_FAMILY_..., at least one */
  uint32_t flags;        /* KF_ROW_... */
  const char* condition; /* when it serves, in words, for lists */
  /* The operands and attributes that it reads or writes, then null. kf refuses a call that has anything else set, be it
   * of a later kf. All operands that the op cannot do without are among them. */
  const char* const* fields;
  void* context; /* the plug-in's own; its functions find it in the row that they are given */
  /* KF_OK: yes. KF_NOT_IMPLEMENTED: no, with a reason that quotes what is taken ("dtype bf16: this row takes f32"). */
  kf_status (*supports)(const struct kf_row* row, const kf_call* call, const kf_plan_context* context,
                        kf_reason* reason);
  /* Optional. What can be done once for calls of one layout. */
  kf_status (*plan)(const struct kf_row* row, const kf_call* call, const kf_plan_context* context,
                    kf_planned* planned, kf_reason* reason);
  void (*free_plan)(const struct kf_row* row, kf_plan* plan); /* with plan() */
  /* Does the call, or enqueues it on the stream; on a device it does not wait. Every layout that supports() lets through, with
   * outputs in the memory of those inputs that the op names in may_alias(). */
  kf_status (*run)(const struct kf_row* row, const kf_call* call, const kf_plan* plan,
                   const kf_run_context* context, kf_reason* reason);
} kf_row;

/* kf makes it; strings end with a zero within their arrays. What is not known stays 0. */
typedef struct kf_capabilities {
  size_t struct_size;
  char name[128];      /* "Toy 100" */
  char isa[32];        /* the instruction set or generation: "910B" */
  int32_t num_threads; /* host threads of one call; 0: 1 */
  uint64_t l1_bytes, l2_bytes, l3_bytes, memory_bytes;
} kf_capabilities;

enum { KF_COPY_TO_DEVICE = 0, KF_COPY_TO_HOST = 1, KF_COPY_ON_DEVICE = 2 };

/* How memory is reached that the host cannot address. The last two, or neither. */
typedef struct kf_memory {
  size_t struct_size;
  void* context; /* given to each of its functions */
  /* At least `bytes`, 64-byte aligned, for what the stream is given after this call. Does not wait. */
  kf_status (*allocate)(void* context, int32_t device, size_t bytes, void* stream, void** memory,
                        kf_reason* reason);
  /* Once all that the stream was given before is done. */
  void (*free)(void* context, int32_t device, void* memory, void* stream);
  /* In the order of the stream. The host's side stays as it is until synchronize(). */
  kf_status (*copy)(void* context, int32_t device, void* to, const void* from, size_t bytes,
                    int32_t direction, void* stream, kf_reason* reason);
  /* Waits for all that the stream was given; what the device reports is its error. */
  kf_status (*synchronize)(void* context, int32_t device, void* stream, kf_reason* reason);
  /* Host memory that copies take as it is (pinned). */
  kf_status (*allocate_host)(void* context, int32_t device, size_t bytes, void** memory, kf_reason* reason);
  void (*free_host)(void* context, void* memory);
} kf_memory;

/* Gives a stream work; of kf. Not KF_OK: nothing more is to be done, and the caller returns this status. */
typedef kf_status (*kf_enqueue)(void* argument, void* stream);

typedef struct kf_plugin {
  size_t struct_size;
  const char* name;          /* of the backend: "toy"; lower-case letters, digits, _ */
  const char* version;       /* of the plug-in, for lists */
  const char* device_type;   /* whose tensors it takes: "cpu", "cuda", "rocm", "ascend", "mlu" or "kunlun" */
  void* context;             /* given to each of the functions below */
  const kf_row* const* rows; /* best first */
  size_t num_rows;
  const kf_memory* memory; /* null: the host can address the device's */
  /* KF_OK, or why the backend cannot be used on this machine. */
  kf_status (*available)(void* context, kf_reason* reason);
  /* KF_UNAVAILABLE where there is no device of this number. */
  kf_status (*capabilities)(void* context, int32_t device, kf_capabilities* capabilities, kf_reason* reason);
  /* Optional. Milliseconds that the device takes, by its own clock, for what one call of enqueue(argument, stream) gives the
   * stream: the median over many in a row. */
  kf_status (*time)(void* context, int32_t device, kf_enqueue enqueue, void* argument, double* milliseconds,
                    kf_reason* reason);
} kf_plugin;

#if defined(_WIN32)
#define KF_PLUGIN_EXPORT __declspec(dllexport)
#else
#define KF_PLUGIN_EXPORT __attribute__((visibility("default")))
#endif

/* What a plug-in exports. */

/* KF_ABI_VERSION as it was when the plug-in was compiled. Asked first. */
KF_PLUGIN_EXPORT uint32_t kf_plugin_abi_version(void);
/* The plug-in's table, which stays as it is; `host` stays too. Null: it cannot be had, and why. Touches no device. */
KF_PLUGIN_EXPORT const kf_plugin* kf_plugin_open(const kf_host* host, kf_reason* reason);

#ifdef __cplusplus
}
#endif

#endif /* KF_KF_C_H */
