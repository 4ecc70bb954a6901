# Compiles ICU: the libraries common and i18n, of the latter only collation. No configure: ICU's headers know Linux.
#
# make -f icu.mk SOURCE=icu/source CXX=... CXXFLAGS=... libicu.a (in the folder of the objects)

common := $(notdir $(wildcard $(SOURCE)/common/*.cpp))
i18n := bocsu.cpp rulebasedcollator.cpp sortkey.cpp ucln_in.cpp \
	$(notdir $(wildcard $(SOURCE)/i18n/col*.cpp $(SOURCE)/i18n/u*col*.cpp))

# PostgreSQL hands over UTF-8 and opens converters only for databases in other encodings.
options := -DU_STATIC_IMPLEMENTATION -DU_CHARSET_IS_UTF8=1 -DUCONFIG_NO_FILE_IO=1 -I$(SOURCE)/common

libicu.a: $(common:.cpp=.o) $(i18n:.cpp=.o) runtime.o data.o
	ar rcs $@ $^

$(common:.cpp=.o): %.o: $(SOURCE)/common/%.cpp
	$(CXX) $(CXXFLAGS) $(options) -DU_COMMON_IMPLEMENTATION -c -o $@ $<

$(i18n:.cpp=.o): %.o: $(SOURCE)/i18n/%.cpp
	$(CXX) $(CXXFLAGS) $(options) -DU_I18N_IMPLEMENTATION -I$(SOURCE)/i18n -c -o $@ $<

runtime.o: $(HERE)/runtime.cpp
	$(CXX) $(CXXFLAGS) -c -o $@ $<

data.o: data.S
	$(CC) -c -o $@ $<
