// Verdicts on disk: found again, cleared, overruled; files that cannot be read or written.

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kf/error.h"
#include "kf/verdict_store.h"

namespace kf {
namespace {

namespace fs = std::filesystem;

class VerdictStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "kf-verdicts-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    path = (folder / "deep" / "verdicts.json").string();
  }
  void TearDown() override { fs::remove_all(folder); }

  static Verdict verdict(const std::string& rule, bool keep = true) {
    return {rule, "x=f32[1, 8]", "device", {}, keep, 2.5, 1.25, 4096, 1024, 1e-6, "1.25 ms \"quoted\""};
  }

  fs::path folder;
  std::string path;
};

TEST_F(VerdictStoreTest, KeepsWhatItIsTold) {
  VerdictStore store(path);
  store.put(verdict("a"));
  store.put(verdict("b", false));
  store.save();
  const VerdictStore again(path);
  ASSERT_EQ(again.list().size(), 2u);
  const auto a = again.find("a", "x=f32[1, 8]", "device");
  ASSERT_TRUE(a.has_value());
  EXPECT_TRUE(a->keep);
  EXPECT_EQ(a->unfused_ms, 2.5);
  EXPECT_EQ(a->fused_bytes, 1024);
  EXPECT_EQ(a->reason, "1.25 ms \"quoted\"");
  EXPECT_FALSE(a->version.empty());
  EXPECT_FALSE(again.find("b", "x=f32[1, 8]", "device")->keep);
  EXPECT_FALSE(again.find("a", "x=f32[2, 8]", "device").has_value());
  EXPECT_FALSE(again.find("a", "x=f32[1, 8]", "other device").has_value());
}

TEST_F(VerdictStoreTest, AnErrorThatIsNoNumberCanBeReadAgain) {
  VerdictStore store(path);
  for (const double error : {std::nan(""), HUGE_VAL}) {
    Verdict v = verdict(error > 0 ? "infinite" : "nan", false);
    v.max_error = error;
    store.put(v);
  }
  store.save();
  EXPECT_EQ(VerdictStore(path).list().size(), 2u);
  EXPECT_FALSE(fs::exists(path + ".corrupt"));
}

TEST_F(VerdictStoreTest, AnotherVersionsVerdictsDoNotCount) {
  VerdictStore store;
  Verdict old = verdict("a");
  old.version = "0.0.0-old";
  store.put(old);
  EXPECT_FALSE(store.find("a", old.signature, old.device).has_value());
  EXPECT_EQ(store.list().size(), 1u);
}

TEST_F(VerdictStoreTest, OverrulesAndClears) {
  VerdictStore store(path);
  store.put(verdict("a"));
  store.put(verdict("a", false));
  ASSERT_EQ(store.list().size(), 1u);
  EXPECT_FALSE(store.list().front().keep);
  store.clear();
  store.save();
  EXPECT_TRUE(VerdictStore(path).list().empty());
}

TEST_F(VerdictStoreTest, CorruptFilesAreSetAside) {
  fs::create_directories(fs::path(path).parent_path());
  for (const char* content :
       {"{\"format\": 1, \"verdicts\": [{\"rule\"", "", "[]", "{\"format\": 99, \"verdicts\": []}",
        "{\"format\": 1, \"verdicts\": [{\"rule\": 3}]}", "\xff\xfe"}) {
    std::ofstream(path) << content;
    VerdictStore store(path);
    EXPECT_TRUE(store.list().empty());
    EXPECT_FALSE(fs::exists(path));
    EXPECT_TRUE(fs::exists(path + ".corrupt"));
    store.put(verdict("a"));
    store.save();
    EXPECT_EQ(VerdictStore(path).list().size(), 1u);
  }
}

TEST_F(VerdictStoreTest, WhatCannotBeWrittenIsAnErrorAndLeavesTheOldFile) {
  // A folder where the file should be cannot be replaced by it, whoever asks.
  fs::create_directories(fs::path(path) / "occupied");
  VerdictStore store(path);
  store.put(verdict("a"));
  try {
    store.save();
    FAIL() << "expected an error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::resource_exhausted);
    EXPECT_EQ(e.context().at("path"), path);
  }
  EXPECT_TRUE(fs::exists(fs::path(path) / "occupied"));
  for (const auto& entry : fs::directory_iterator(fs::path(path).parent_path()))
    EXPECT_EQ(entry.path(), path);
}

// A write that the system refuses (a full disk, a quota), brought about by a limit on file sizes.
TEST_F(VerdictStoreTest, AFullDiskIsAnErrorAndTheOldFileStays) {
  VerdictStore store(path);
  store.put(verdict("a"));
  store.save();
  store.put(verdict("b"));
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit none{0, old.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &none);
  std::optional<ErrorCode> code;
  try {
    store.save();
  } catch (const Error& e) {
    code = e.code();
  }
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(code, ErrorCode::resource_exhausted);
  EXPECT_EQ(VerdictStore(path).list().size(), 1u);
}

TEST_F(VerdictStoreTest, AFolderThatCannotBeMadeIsAnError) {
  std::ofstream(folder / "file") << "not a folder";
  VerdictStore store((folder / "file" / "verdicts.json").string());
  store.put(verdict("a"));
  EXPECT_THROW(store.save(), Error);
}

TEST_F(VerdictStoreTest, PathsThatCannotBeLookedAtDoNotThrow) {
  const std::string long_name = (folder / std::string(300, 'x')).string();
  VerdictStore store(long_name);
  EXPECT_TRUE(store.list().empty());
  store.put(verdict("a"));
  EXPECT_THROW(store.save(), Error);
}

// Root may read anything: for as long as this lives, root is another user, who owns `folder`.
class NotRoot {
 public:
  explicit NotRoot(const fs::path& folder) : root_(::geteuid() == 0) {
    constexpr uid_t kNobody = 65534;
    if (root_ && (::chown(folder.c_str(), kNobody, static_cast<gid_t>(-1)) != 0 || ::seteuid(kNobody) != 0))
      throw std::runtime_error("cannot become another user");
  }
  ~NotRoot() {
    if (root_ && ::seteuid(0) != 0) std::abort();
  }
  NotRoot(const NotRoot&) = delete;
  NotRoot& operator=(const NotRoot&) = delete;

 private:
  const bool root_;
};

TEST_F(VerdictStoreTest, WhatMayNotBeReadIsLeftAlone) {
  const NotRoot user(folder);
  VerdictStore writer(path);
  writer.put(verdict("a"));
  writer.save();
  fs::permissions(path, fs::perms::none);
  VerdictStore store(path);
  EXPECT_TRUE(store.list().empty());
  EXPECT_TRUE(fs::exists(path));
  EXPECT_FALSE(fs::exists(path + ".corrupt"));
  store.put(verdict("b"));
  EXPECT_THROW(store.save(), Error);
  fs::permissions(path, fs::perms::owner_all);
  EXPECT_EQ(VerdictStore(path).list().size(), 1u);
}

TEST_F(VerdictStoreTest, WritersKeepEachOthersVerdicts) {
  VerdictStore first(path), second(path);
  first.put(verdict("a"));
  second.put(verdict("b"));
  first.save();
  second.save();
  EXPECT_EQ(VerdictStore(path).list().size(), 2u);
  EXPECT_EQ(second.list().size(), 2u);
  // The later word on a question counts, whoever had loaded the earlier one.
  second.put(verdict("a", false));
  second.save();
  first.put(verdict("c"));
  first.save();
  EXPECT_FALSE(VerdictStore(path).find("a", "x=f32[1, 8]", "device")->keep);
}

TEST_F(VerdictStoreTest, ManyThreadsSaveAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      VerdictStore store(path);
      for (int i = 0; i < 5; ++i) {
        store.put(verdict("rule" + std::to_string(t) + "." + std::to_string(i)));
        store.save();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(VerdictStore(path).list().size(), 40u);
  for (const auto& entry : fs::directory_iterator(fs::path(path).parent_path()))
    EXPECT_EQ(entry.path(), path);
}

TEST_F(VerdictStoreTest, OtherBuildsAreMeasuredAnew) {
  VerdictStore store;
  store.put(verdict("a"));
  const std::string version = store.list().front().version;
  EXPECT_NE(version.find('+'), std::string::npos) << version;
  Verdict other = verdict("b");
  other.version = version.substr(0, version.find('+'));
  store.put(other);
  EXPECT_TRUE(store.find("a", other.signature, other.device).has_value());
  EXPECT_FALSE(store.find("b", other.signature, other.device).has_value());
}

TEST_F(VerdictStoreTest, PathFollowsTheEnvironment) {
  ::setenv("KF_CACHE_DIR", "/somewhere", 1);
  EXPECT_EQ(VerdictStore::default_path(), "/somewhere/fusion_verdicts.json");
  ::unsetenv("KF_CACHE_DIR");
  VerdictStore memory_only("");
  memory_only.put(verdict("a"));
  EXPECT_NO_THROW(memory_only.save());
}

}  // namespace
}  // namespace kf
