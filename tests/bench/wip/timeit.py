exec(open(__file__.rsplit('/',1)[0]+'/proto.py').read())
import resource, shutil, ctypes as C
from pathlib import Path
from activities.bucket.records import UploadOptions
from activities.render import raster
from activities.render.measure import measure
from activities.render.pdf_file import PdfFile
from activities.render.pyramid import turn_off_cache, write_sheet
turn_off_cache(); O=UploadOptions()
def cpu(): u=resource.getrusage(resource.RUSAGE_SELF); return u.ru_utime+u.ru_stime
tot=[0,0,0,0]
for arg in sys.argv[1:]:
    f,pg=arg.rsplit(':',1); pdf=PdfFile(Path(f)); m={p.number:p for p in measure(pdf,O,2000).pages}
    buf=raster.PixelBuffer()
    for n in map(int,pg.split(',')):
        w,h=m[n].width,m[n].height
        raster.draw(pdf,n,w,h,buf)
        a=cpu(); raster.draw(pdf,n,w,h,buf).pixels; dr=cpu()-a
        addr=C.addressof(C.c_ubyte.from_buffer(buf._memory))
        best=[9,9]
        for _ in range(3):
            d=Path(tempfile.mkdtemp(dir='/dev/shm')); a=cpu(); write_sheet(memoryview(buf._memory)[:w*h*3],w,h,O,d); best[0]=min(best[0],cpu()-a); zb=(d/'tiles.zip').stat().st_size; shutil.rmtree(d)
        for _ in range(4):
            a=cpu(); r,_,_=cut(addr,w,h); best[1]=min(best[1],cpu()-a); assert r==0
        t,wh=read(); cb=os.path.getsize('/dev/shm/cut.bin'); col=sum(1 for x in t.values() if x[20+69:22+69]==b'\xff\xdb' )
        tot=[x+y for x,y in zip(tot,[dr,best[0],best[1],0])]
        print(f"{Path(f).name[:28]:28} p{n:<3} {w}x{h} draw {dr:.3f} dzsave {best[0]:.3f} cut {best[1]:.3f} {best[0]/best[1]:.2f}x  bytes zip {zb/1e6:.1f} cut {cb/1e6:.1f} tiles {len(t)} colour {col}")
print(tot, tot[1]/tot[2])
