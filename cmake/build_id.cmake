# Hashes what the library is built from into OUT; run at build time, whenever one of the sources is newer.
#   cmake -DSOURCE_DIR=... -DSETTINGS=... -DOUT=... -P build_id.cmake
file(GLOB_RECURSE files LIST_DIRECTORIES false RELATIVE "${SOURCE_DIR}" "${SOURCE_DIR}/src/*" "${SOURCE_DIR}/include/*")
list(SORT files)
set(hashes "${SETTINGS}")
foreach(file IN LISTS files)
  file(SHA256 "${SOURCE_DIR}/${file}" hash)
  string(APPEND hashes "\n${file} ${hash}")
endforeach()
string(SHA256 id "${hashes}")
string(SUBSTRING "${id}" 0 12 id)
file(WRITE "${OUT}" "#define KF_BUILD_ID \"${id}\"\n")
